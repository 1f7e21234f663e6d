"""Strategies in which ranks take steps without waiting for each other."""
