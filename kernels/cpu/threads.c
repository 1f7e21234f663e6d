#include "mpidl.h"

int mpidl_threads = 1, mpidl_winograd = 1;

/* Whether convolutions may take Winograd's way. */
void mpidl_set_winograd(int allowed) {
    mpidl_winograd = allowed;
}

/* How many threads the kernels of this process use: the rank's share of cores. Returns what they
 * will use. */
int mpidl_set_threads(int count) {
#ifdef _OPENMP
    mpidl_threads = count > 0 ? count : 1;
#endif
    (void)count;
    return mpidl_threads;
}

/* Memory that kernels use again: fresh pages in every call would cost as much as small kernels do.
 * One set for each thread that calls kernels; grows, and is never given back. NULL if there is
 * none. */
void *mpidl_scratch(int slot, size_t bytes) {
    static __thread struct {
        void *memory;
        size_t bytes;
    } held[SCRATCH_SLOTS];
    if (held[slot].bytes < bytes) {
        free(held[slot].memory);
        held[slot].bytes = (bytes + (bytes >> 3) + 4095) & ~(size_t)4095;
        held[slot].memory = aligned_alloc(4096, held[slot].bytes);
        if (!held[slot].memory) held[slot].bytes = 0;
    }
    return held[slot].memory;
}
