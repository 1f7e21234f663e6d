// Softmax over rows, and losses between rows. One warp a row; blocks of (32, rows per block).
#define FOR_ROWS(r, rows) \
    for (i64 r = (i64)blockIdx.x * blockDim.y + threadIdx.y; r < (rows); r += (i64)gridDim.x * blockDim.y)
#define ALL_LANES(value) __shfl_sync(0xffffffffu, warp_sum(value), 0)

extern "C" __global__ void softmax_forward(const REAL *x, REAL *y, i64 rows, i64 cols, int logarithm) {
    const int lane = threadIdx.x;
    FOR_ROWS(r, rows) {
        const REAL *in = x + r * cols;
        REAL top = in[0], sum = REAL(0);
        for (i64 c = lane; c < cols; c += WARP) top = in[c] > top ? in[c] : top;
        for (int offset = WARP / 2; offset > 0; offset /= 2) {
            const REAL other = __shfl_xor_sync(0xffffffffu, top, offset);
            top = other > top ? other : top;
        }
        for (i64 c = lane; c < cols; c += WARP) sum += exp(in[c] - top);
        sum = ALL_LANES(sum);
        const REAL shift = top + log(sum);
        for (i64 c = lane; c < cols; c += WARP) y[r * cols + c] = logarithm ? in[c] - shift : exp(in[c] - top) / sum;
    }
}

extern "C" __global__ void softmax_backward(const REAL *dy, const REAL *y, REAL *dx, i64 rows, i64 cols, int logarithm) {
    const int lane = threadIdx.x;
    FOR_ROWS(r, rows) {
        const REAL *g = dy + r * cols, *out = y + r * cols;
        REAL sum = REAL(0);
        for (i64 c = lane; c < cols; c += WARP) sum += logarithm ? g[c] : g[c] * out[c];
        sum = ALL_LANES(sum);
        for (i64 c = lane; c < cols; c += WARP) dx[r * cols + c] = logarithm ? g[c] - exp(out[c]) * sum : out[c] * (g[c] - sum);
    }
}

// kind: 0 squared error, 1 Huber with threshold delta, 2 binary cross-entropy of logits x.
extern "C" __global__ void pair_loss(const REAL *x, const REAL *target, REAL *loss, REAL *dx, i64 rows, i64 cols, REAL scale, int kind,
                                     REAL delta) {
    FOR_ROWS(r, rows) {
        REAL sum = REAL(0);
        for (i64 c = r * cols + threadIdx.x; c < (r + 1) * cols; c += WARP) {
            const REAL e = x[c] - target[c], a = e < REAL(0) ? -e : e;
            if (kind == 0) {
                sum += e * e;
                dx[c] = REAL(2) * e * scale;
            } else if (kind == 1) {
                sum += a <= delta ? REAL(0.5) * e * e : delta * (a - REAL(0.5) * delta);
                dx[c] = (a <= delta ? e : e < REAL(0) ? -delta : delta) * scale;
            } else {
                const REAL v = x[c], size = v < REAL(0) ? -v : v;
                sum += (v > REAL(0) ? v : REAL(0)) - v * target[c] + log1p(exp(-size));
                dx[c] = (REAL(1) / (REAL(1) + exp(-v)) - target[c]) * scale;
            }
        }
        sum = warp_sum(sum);
        if (threadIdx.x == 0) loss[r] = sum;
    }
}
