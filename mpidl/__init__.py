"""mpidl: distributed deep learning on HPC clusters over MPI."""

from mpidl.comm import mpi as _mpi

# Before anything imports h5py (see mpidl.comm.mpi); loads the library, does not initialize MPI.
_mpi.preload()

__version__ = "0.1.0"
