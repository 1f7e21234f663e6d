/* What every CPU kernel shares: the vector width of this instruction-set level, and the calling convention.
 *
 * Each kernel is written once in NAME_impl.h for an element type REAL and compiled twice, for float and for double, by a
 * NAME.c that includes typed.h. All arrays are C-contiguous; images are NHWC. Functions return 0, or MPIDL_NO_MEMORY.
 */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MPIDL_NO_MEMORY 1
#define ALWAYS_INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define TILE_ROWS 14 /* 14 x 2 accumulators + 2 vectors of weights + 1 broadcast <= 32 registers */
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define TILE_ROWS 6 /* 6 x 2 accumulators + 2 + 1 <= 16 registers */
#else
#define VECTOR_BYTES 16
#define TILE_ROWS 6
#endif
#define TILE_VECTORS 2
