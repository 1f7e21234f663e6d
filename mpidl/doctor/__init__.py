"""Checks a machine for what would keep jobs from running on it; one module for each subject."""
