"""Kangaroo, double early exiting, a plugin for fastllm."""
