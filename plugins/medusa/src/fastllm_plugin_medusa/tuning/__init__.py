"""Finding the tree that drafts fastest for a model, its heads, a set of prompts and a device."""
