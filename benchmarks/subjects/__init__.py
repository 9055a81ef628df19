"""Processes that are measured. Each does one thing and prints one line of JSON about it."""
