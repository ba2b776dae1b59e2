"""Training a model so that its first layers can draft: `fastllm tune early-exit`."""
