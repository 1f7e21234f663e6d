/* One family of kernels, the header FAMILY, compiled for float and for double. setup.py compiles
 * this file once for each family: in one translation unit GCC inlines less, and products took 3 to
 * 9 % longer. */
#include "mpidl.h"

#define REAL float
#define MASK int32_t
#define NAME(function) mpidl_##function##_f32
#define VEC vec_f32
typedef float vec_f32 __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
#define IVEC ivec_f32
typedef int32_t ivec_f32 __attribute__((vector_size(VECTOR_BYTES)));
#include "math_impl.h"
#include "tile.h"
#include "calls.h"
#include FAMILY
#undef LANES
#undef PANEL
#undef PANELS
#undef REAL
#undef MASK
#undef NAME
#undef VEC
#undef IVEC

#define REAL double
#define MASK int64_t
#define NAME(function) mpidl_##function##_f64
#define VEC vec_f64
typedef double vec_f64 __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
#define IVEC ivec_f64
typedef int64_t ivec_f64 __attribute__((vector_size(VECTOR_BYTES)));
#include "math_impl.h"
#include "tile.h"
#include "calls.h"
#include FAMILY
#undef LANES
#undef PANEL
#undef PANELS
