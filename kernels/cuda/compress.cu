// Quantizing and selecting gradients, as in kernels/cpu/compress.c: the same packets from the same
// numbers.

__device__ inline unsigned hashed(unsigned seed,
                                  unsigned i) { // lowbias32 of Wellons (2018) over a Weyl sequence
    unsigned x = i * 0x9e3779b9u + seed;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

__device__ inline unsigned magnitude(float x) {
    union {
        float value;
        unsigned bits;
    } both;
    both.value = x;
    return both.bits & 0x7fffffffu;
}

__device__ inline float from_bits(unsigned bits) {
    union {
        float value;
        unsigned bits;
    } both;
    both.bits = bits;
    return both.value;
}

// One block of threads for each block of elements that share a scale: the largest magnitude, then
// stochastic rounding.
extern "C" __global__ void int8_pack(const float *x, float *scales, u8 *q, i64 n, i64 block,
                                     i64 blocks, i64 seed) {
    __shared__ unsigned tops[BLOCK];
    for (i64 b = blockIdx.x; b < blocks; b += gridDim.x) {
        const i64 start = b * block, stop = start + block < n ? start + block : n;
        unsigned top = 0;
        for (i64 i = start + threadIdx.x; i < stop; i += BLOCK) {
            const unsigned a = magnitude(float(x[i]));
            top = a > top ? a : top;
        }
        tops[threadIdx.x] = top;
        __syncthreads();
        for (int half = BLOCK / 2; half > 0; half /= 2) {
            if ((int)threadIdx.x < half && tops[threadIdx.x + half] > tops[threadIdx.x])
                tops[threadIdx.x] = tops[threadIdx.x + half];
            __syncthreads();
        }
        top = tops[0];
        const bool finite = top < 0x7f800000u;
        const float peak = from_bits(top), inverse = finite && peak > 1e-37f ? 127.0f / peak : 0.0f;
        if (threadIdx.x == 0)
            scales[b] = !finite ? from_bits(0x7fc00000u) : inverse > 0.0f ? peak / 127.0f : 0.0f;
        for (i64 i = start + threadIdx.x; i < stop; i += BLOCK) {
            const float u =
                (float)(int)(hashed((unsigned)seed, (unsigned)i) >> 8) * (1.0f / 16777216.0f);
            const int t = finite ? (int)(float(x[i]) * inverse + u + 256.0f) - 256 : 1;
            q[i] = (u8)(signed char)(t > 127 ? 127 : t);
        }
        __syncthreads();
    }
}

// y = q * scale, or y += sign * q * scale where sign is not 0.
extern "C" __global__ void int8_unpack(const float *scales, const u8 *q, float *y, i64 n, i64 block,
                                       i64 blocks, int sign) {
    FOR_EACH(i, n) {
        const float value = scales[i / block] * (float)(signed char)q[i];
        y[i] = sign ? float(y[i]) + (float)sign * value : value;
    }
}

// One bit each (1: not negative), lowest bit first; scale = mean |x| of each block. A warp a block,
// a byte a lane at a time.
extern "C" __global__ void sign_pack(const float *x, float *scales, u8 *bits, i64 n, i64 block,
                                     i64 blocks, i64 bytes) {
    for (i64 b = (i64)blockIdx.x * blockDim.y + threadIdx.y; b < blocks;
         b += (i64)gridDim.x * blockDim.y) {
        const i64 start = b * block, stop = start + block < n ? start + block : n;
        ACC sum = ACC(0);
        for (i64 i = start + threadIdx.x * 8; i < stop; i += WARP * 8) {
            unsigned byte = 0;
            for (int j = 0; j < 8 && i + j < stop; j++) {
                const float v = x[i + j];
                sum += v < 0.0f ? -v : v;
                byte |= (unsigned)(v >= 0.0f) << j;
            }
            bits[i / 8] = (u8)byte;
        }
        sum = all_lanes(sum);
        if (threadIdx.x == 0) scales[b] = sum / ACC(stop - start);
    }
}

extern "C" __global__ void sign_unpack(const float *scales, const u8 *bits, float *y, i64 n,
                                       i64 block, i64 blocks, i64 bytes, int sign) {
    FOR_EACH(i, n) {
        const float scale = scales[i / block], value = bits[i / 8] >> (i % 8) & 1 ? scale : -scale;
        y[i] = sign ? float(y[i]) + (float)sign * value : value;
    }
}

// values += residual; residual = values.
extern "C" __global__ void add_and_keep(float *values, float *residual, i64 n) {
    FOR_EACH(i, n) {
        values[i] = ACC(values[i]) + ACC(residual[i]);
        residual[i] = values[i];
    }
}

// How many elements have each of the 65536 upper halves of their magnitudes.
extern "C" __global__ void topk_count(const float *x, i64 *counts, i64 n, i64 bins) {
    FOR_EACH(i, n) atomicAdd((unsigned long long *)counts + (magnitude(float(x[i])) >> 15), 1ull);
}

// The indices of all elements of class `least` and above, in any order; found counts them.
extern "C" __global__ void topk_select(const float *x, i64 *index, i64 *found, i64 n, i64 room,
                                       i64 least) {
    FOR_EACH(i, n)
        if ((i64)(magnitude(float(x[i])) >> 15) >= least)
            index[atomicAdd((unsigned long long *)found, 1ull)] = i;
}

// y[index] += sign * value; no index occurs twice.
extern "C" __global__ void scatter_add(const i64 *index, const float *value, float *y, i64 count,
                                       i64 n, int sign) {
    FOR_EACH(i, count) y[index[i]] += (float)sign * value[i];
}
