"""Self-speculative decoding by skipped layers and early exit, a plugin for fastllm."""
