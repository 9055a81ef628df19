"""Contracts every room of the fleet shares; imports nothing of ours from outside this folder."""

__version__ = "0.1.0"
