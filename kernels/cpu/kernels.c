/* All families of kernels, each compiled for float and for double. */
#include "mpidl.h"

#define REAL float
#define MASK int32_t
#define NAME(function) mpidl_##function##_f32
#define VEC vec_f32
typedef float vec_f32 __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
#define IVEC ivec_f32
typedef int32_t ivec_f32 __attribute__((vector_size(VECTOR_BYTES)));
#include "families.h"
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
#include "families.h"
