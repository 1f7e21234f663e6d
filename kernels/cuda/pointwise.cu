// Element-wise passes: bias, ReLU and its gradient, input normalisation, column sums. See kernels/README.md.

extern "C" __global__ void bias_act(REAL *y, const REAL *bias, i64 n, i64 cols, int relu) {
    FOR_EACH(i, n) {
        const REAL v = y[i] + bias[i % cols];
        y[i] = relu && v < REAL(0) ? REAL(0) : v;  // a NaN stays a NaN
    }
}

extern "C" __global__ void relu_forward(const REAL *x, REAL *y, i64 n) {
    FOR_EACH(i, n) y[i] = x[i] < REAL(0) ? REAL(0) : x[i];
}

extern "C" __global__ void relu_backward(const REAL *dy, const REAL *y, REAL *dx, i64 n) {
    FOR_EACH(i, n) dx[i] = y[i] > REAL(0) ? dy[i] : REAL(0);
}

extern "C" __global__ void scale_u8(const u8 *x, REAL *y, i64 n, REAL scale, REAL shift) {
    FOR_EACH(i, n) y[i] = REAL(x[i]) * scale + shift;
}

// One block of (32, 8) threads sums 32 columns: threadIdx.x is the column, threadIdx.y strides over the rows.
extern "C" __global__ void column_sums(const REAL *x, REAL *sums, i64 rows, i64 cols) {
    __shared__ REAL part[8][WARP];
    const i64 col = (i64)blockIdx.x * WARP + threadIdx.x;
    REAL sum = REAL(0);
    if (col < cols)
        for (i64 r = threadIdx.y; r < rows; r += 8) sum += x[r * cols + col];
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && col < cols) {
        for (int k = 1; k < 8; k++) sum += part[k][threadIdx.x];
        sums[col] = sum;
    }
}
