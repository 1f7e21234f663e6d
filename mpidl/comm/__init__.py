"""The ranks of a job, their placement, and how buffers reach MPI."""
