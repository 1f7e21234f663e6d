"""Measures and predicts: machines, collectives, whole training steps."""
