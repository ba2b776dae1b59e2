"""Medusa, heads on the last hidden state, a plugin for fastllm."""
