"""`fastllm tune layers` and `early-exit`. Nothing here imports torch: what needs it is imported when a command runs."""
