"""The commands. Nothing here imports torch: what needs it is imported when a command runs."""
