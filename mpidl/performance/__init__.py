"""Measures and predicts: machines, collectives, whole steps."""
