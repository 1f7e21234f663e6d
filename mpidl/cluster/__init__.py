"""What the batch system does to a job: signals before the time limit."""
