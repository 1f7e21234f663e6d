"""Refuses what cannot work, and names ranks that never arrive."""
