/* What every CPU kernel shares: the vector width of this instruction-set level, and the calling
 * convention.
 *
 * Each kernel is written once in NAME_impl.h for an element type REAL and compiled twice, for float
 * and for double, by a NAME.c that includes typed.h. All arrays are C-contiguous; images are NHWC.
 * Functions return 0, or MPIDL_NO_MEMORY.
 */
#pragma once
#include "../codes.h"
#include "../geometry.h"
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#define THREADS omp_get_num_threads()
#else
#define THREAD 0
#define THREADS 1
#endif

/* Threads divide the results among them and never a sum, so that their number does not change a
 * single bit. */
extern int mpidl_threads, mpidl_winograd;
#define PRAGMA(text) _Pragma(#text)
#define PARALLEL PRAGMA(omp parallel num_threads(mpidl_threads) if (mpidl_threads > 1))
// clang-format off
#define PARALLEL_FOR(work)                                              \
    PRAGMA(omp parallel for schedule(static) num_threads(mpidl_threads) \
           if (mpidl_threads > 1 && (work) > (1 << 15)))
// clang-format on
#define SHARED_FOR PRAGMA(omp for schedule(static))

#define MPIDL_NO_MEMORY 1
enum { SCRATCH_GEMM, SCRATCH_INPUT, SCRATCH_OUTPUT, SCRATCH_WEIGHTS, SCRATCH_OTHER, SCRATCH_SLOTS };
void *mpidl_scratch(int slot, size_t bytes);
#define ALWAYS_INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
/* 14 x 2 accumulators + 2 vectors of weights + 1 broadcast <= 32 registers  */
#define TILE_ROWS 14
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define TILE_ROWS 6 /* 6 x 2 accumulators + 2 + 1 <= 16 registers */
#else
#define VECTOR_BYTES 16
#define TILE_ROWS 6
#endif
#define TILE_VECTORS 2

/* A tile needs its number of rows at compile time to live in registers. */
#if TILE_ROWS == 14
#define FOR_ROWS(rows, CALL)  \
    switch (rows) {           \
    case 1: CALL(1); break;   \
    case 2: CALL(2); break;   \
    case 3: CALL(3); break;   \
    case 4: CALL(4); break;   \
    case 5: CALL(5); break;   \
    case 6: CALL(6); break;   \
    case 7: CALL(7); break;   \
    case 8: CALL(8); break;   \
    case 9: CALL(9); break;   \
    case 10: CALL(10); break; \
    case 11: CALL(11); break; \
    case 12: CALL(12); break; \
    case 13: CALL(13); break; \
    default: CALL(14);        \
    }
#else
#define FOR_ROWS(rows, CALL) \
    switch (rows) {          \
    case 1: CALL(1); break;  \
    case 2: CALL(2); break;  \
    case 3: CALL(3); break;  \
    case 4: CALL(4); break;  \
    case 5: CALL(5); break;  \
    default: CALL(6);        \
    }
#endif

/* Philox4x32-10 (Salmon et al., 2011): the words of counter c, in place, under key seed. */
ALWAYS_INLINE void philox(uint32_t c[4], long seed) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)((uint64_t)seed >> 32);
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        const uint64_t a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
        const uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k0, (uint32_t)b,
                                  (uint32_t)(a >> 32) ^ c[3] ^ k1, (uint32_t)a};
        memcpy(c, next, sizeof next);
    }
}
