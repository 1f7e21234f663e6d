"""What `mpidl.backend.cupy_ops` is made of, by job: launches, matrix products, staging, packing."""
