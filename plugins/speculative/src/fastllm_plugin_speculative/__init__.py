"""Speculative decoding with a draft model, a plugin for fastllm."""
