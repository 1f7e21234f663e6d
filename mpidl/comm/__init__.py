"""Who we are among the ranks, and how buffers travel between them."""
