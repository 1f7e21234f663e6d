// In front of every CUDA source (see mpidl.backend.kernels.cuda_source). Each source is compiled
// once for every element type: -DREAL=float, double, f16 or bf16. What is stored in bulk is REAL;
// sums, statistics, parameters that are vectors and all arithmetic are ACC: float for the 16-bit
// types, else REAL itself. Sizes are long long, 1-D grids of any size work.
#ifndef REAL
#define REAL float
#endif
#ifndef ACC
#define ACC REAL
#endif
typedef long long i64;
typedef unsigned char u8;
typedef signed char i8;

// 16-bit numbers are only stored: they become float when read, and are rounded to nearest even when
// written.
#ifdef __CUDACC_RTC__
__device__ inline float f16_value(unsigned short bits) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
    return v;
}
__device__ inline unsigned short f16_bits(float v) {
    unsigned short b;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(b) : "f"(v));
    return b;
}
__device__ inline unsigned short bf16_bits(float v) {
    unsigned short b;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b) : "f"(v));
    return b;
}
__device__ inline float bf16_value(unsigned short bits) {
    return __uint_as_float((unsigned)bits << 16);
}
#endif
struct f16 {
    unsigned short bits;
    __device__ operator float() const { return f16_value(bits); }
    __device__ f16 &operator=(float v) {
        bits = f16_bits(v);
        return *this;
    }
};
struct bf16 {
    unsigned short bits;
    __device__ operator float() const { return bf16_value(bits); }
    __device__ bf16 &operator=(float v) {
        bits = bf16_bits(v);
        return *this;
    }
};

#define FOR_EACH(i, n)                                                \
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < (n); \
         i += (i64)gridDim.x * blockDim.x)

// One warp a row, for blocks of (32, rows per block).
#define FOR_ROWS(r, rows)                                                \
    for (i64 r = (i64)blockIdx.x * blockDim.y + threadIdx.y; r < (rows); \
         r += (i64)gridDim.x * blockDim.y)

#define WARP 32
#define BLOCK 256
#define FULL 0xffffffffu

// 16 bytes of elements: what one thread loads or stores at once.
#define PACK (int)(16 / sizeof(REAL))
struct alignas(16) Pack {
    REAL v[PACK];
};

__device__ inline bool packable(const void *a, const void *b = nullptr, const void *c = nullptr,
                                const void *d = nullptr) {
    return (((unsigned long long)a | (unsigned long long)b | (unsigned long long)c |
             (unsigned long long)d) &
            15) == 0;
}

// out[i] = f(i, x[i]) for all i < n, 16 bytes at a time where both are aligned. out may be x.
template <class F>
__device__ inline void map(const REAL *x, REAL *out, i64 n, F f) {
    const i64 packs = packable(x, out) ? n / PACK : 0;
    FOR_EACH(p, packs) {
        Pack in = ((const Pack *)x)[p];
        for (int k = 0; k < PACK; k++) in.v[k] = f(p * PACK + k, ACC(in.v[k]));
        ((Pack *)out)[p] = in;
    }
    FOR_EACH(i, n - packs * PACK)
        out[packs * PACK + i] = f(packs * PACK + i, ACC(x[packs * PACK + i]));
}

// out[i] = f(i, x[i], y[i]) for all i < n. out may be x or y.
template <class F>
__device__ inline void map2(const REAL *x, const REAL *y, REAL *out, i64 n, F f) {
    const i64 packs = packable(x, y, out) ? n / PACK : 0;
    FOR_EACH(p, packs) {
        Pack a = ((const Pack *)x)[p];
        const Pack b = ((const Pack *)y)[p];
        for (int k = 0; k < PACK; k++) a.v[k] = f(p * PACK + k, ACC(a.v[k]), ACC(b.v[k]));
        ((Pack *)out)[p] = a;
    }
    FOR_EACH(i, n - packs * PACK) {
        const i64 at = packs * PACK + i;
        out[at] = f(at, ACC(x[at]), ACC(y[at]));
    }
}

// Sum over a warp; lane 0 has the result.
__device__ inline ACC warp_sum(ACC value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        value += __shfl_down_sync(FULL, value, offset);
    return value;
}

// Sum and largest over a warp, on every lane.
__device__ inline ACC all_lanes(ACC value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        value += __shfl_xor_sync(FULL, value, offset);
    return value;
}
__device__ inline ACC warp_top(ACC value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        const ACC other = __shfl_xor_sync(FULL, value, offset);
        value = other > value || other != other ? other : value;
    }
    return value;
}

// Philox4x32-10 (Salmon et al., 2011): the words of counter c, in place, under key seed.
__device__ inline void philox(unsigned *c, i64 seed) {
    unsigned k0 = (unsigned)seed, k1 = (unsigned)((unsigned long long)seed >> 32);
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        const unsigned long long a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
        const unsigned n0 = (unsigned)(b >> 32) ^ c[1] ^ k0, n2 = (unsigned)(a >> 32) ^ c[3] ^ k1;
        c[0] = n0;
        c[1] = (unsigned)b;
        c[2] = n2;
        c[3] = (unsigned)a;
    }
}
