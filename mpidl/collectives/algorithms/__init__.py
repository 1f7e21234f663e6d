"""Algorithms: one generator of rounds a file."""
