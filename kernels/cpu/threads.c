#include "mpidl.h"

int mpidl_threads = 1;

/* How many threads the kernels of this process use: the rank's share of cores. Returns what they will use. */
int mpidl_set_threads(int count) {
#ifdef _OPENMP
    mpidl_threads = count > 0 ? count : 1;
#endif
    (void)count;
    return mpidl_threads;
}
