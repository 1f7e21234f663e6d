"""What a run shows: progress, metrics, plots, and the doctor."""
