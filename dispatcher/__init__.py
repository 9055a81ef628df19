"""Follows tasks files as they grow and queues every line once."""
