"""Looks at a machine and says what would keep jobs from running on it."""
