"""Training: the step, the loop, evaluation, checkpoints."""
