// In front of every CUDA source (see mpidl.backend.kernels.cuda_source): the element type, and a grid-stride loop.
// Each source is compiled once for float and once for double (-DREAL=float). Sizes are long long, 1-D grids of any size work.
#ifndef REAL
#define REAL float
#endif
typedef long long i64;
typedef unsigned char u8;

#define FOR_EACH(i, n) \
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (i64)gridDim.x * blockDim.x)

#define WARP 32
#define BLOCK 256

// Sum over a warp; lane 0 has the result.
__device__ inline REAL warp_sum(REAL value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
    return value;
}
