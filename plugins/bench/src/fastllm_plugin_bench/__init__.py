"""`fastllm bench`: fair comparisons of decoding methods, a plugin for fastllm."""
