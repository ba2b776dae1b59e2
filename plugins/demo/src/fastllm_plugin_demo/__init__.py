"""Small story models for fastllm, and larger ones that are grown from them."""
