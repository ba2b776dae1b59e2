"""Training of an adapter."""
