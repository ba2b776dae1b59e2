"""Training of heads for fastllm: `fastllm train`, and `fastllm convert`."""
