"""Prompt look-up decoding, a plugin for fastllm."""
