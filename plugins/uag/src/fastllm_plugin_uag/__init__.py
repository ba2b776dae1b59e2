"""A draft model with any other tokenizer, a plugin for fastllm."""
