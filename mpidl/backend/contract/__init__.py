"""The operations of a backend by family, written over the kernels of `mpidl.backend.table`."""
