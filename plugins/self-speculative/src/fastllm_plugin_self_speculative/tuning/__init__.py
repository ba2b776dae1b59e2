"""Choosing what drafts leave out: `fastllm tune layers`."""
