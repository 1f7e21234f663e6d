// Element-wise passes: bias, ReLU and its gradient, input normalization, column sums. See
// kernels/README.md.

extern "C" __global__ void bias_act(REAL *y, const ACC *bias, i64 rows, i64 cols, int relu) {
    map(y, y, rows * cols, [=](i64 i, ACC v) {
        v += bias[i % cols];
        return relu && v < ACC(0) ? ACC(0) : v; // a NaN stays a NaN
    });
}

extern "C" __global__ void relu_forward(const REAL *x, REAL *y, i64 n) {
    map(x, y, n, [](i64, ACC v) { return v < ACC(0) ? ACC(0) : v; });
}

extern "C" __global__ void relu_backward(const REAL *dy, const REAL *y, REAL *dx, i64 n) {
    map2(dy, y, dx, n, [](i64, ACC d, ACC v) { return v > ACC(0) ? d : ACC(0); });
}

extern "C" __global__ void scale_u8(const u8 *x, REAL *y, i64 n, ACC scale, ACC shift) {
    const i64 packs = packable(y) && (unsigned long long)x % PACK == 0 ? n / PACK : 0;
    struct alignas(PACK) Bytes {
        u8 v[PACK];
    };
    FOR_EACH(p, packs) {
        const Bytes in = ((const Bytes *)x)[p];
        Pack out;
        for (int k = 0; k < PACK; k++) out.v[k] = ACC(in.v[k]) * scale + shift;
        ((Pack *)y)[p] = out;
    }
    FOR_EACH(i, n - packs * PACK) y[packs * PACK + i] = ACC(x[packs * PACK + i]) * scale + shift;
}

// One block of (32, 8) threads sums 32 columns: threadIdx.x is the column, threadIdx.y strides over
// the rows.
extern "C" __global__ void column_sums(const REAL *x, ACC *sums, i64 rows, i64 cols) {
    __shared__ ACC part[8][WARP];
    const i64 col = (i64)blockIdx.x * WARP + threadIdx.x;
    ACC sum = ACC(0);
    if (col < cols)
        for (i64 r = threadIdx.y; r < rows; r += 8) sum += x[r * cols + col];
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && col < cols) {
        for (int k = 1; k < 8; k++) sum += part[k][threadIdx.x];
        sums[col] = sum;
    }
}

// Master weights to the 16-bit copy that the kernels multiply with.
extern "C" __global__ void round_copy(const ACC *x, REAL *y, i64 n) {
    const i64 packs = packable(x, y) ? n / PACK : 0;
    struct alignas(16) Wide {
        ACC v[PACK];
    };
    FOR_EACH(p, packs) {
        const Wide in = ((const Wide *)x)[p];
        Pack out;
        for (int k = 0; k < PACK; k++) out.v[k] = in.v[k];
        ((Pack *)y)[p] = out;
    }
    FOR_EACH(i, n - packs * PACK) y[packs * PACK + i] = x[packs * PACK + i];
}
