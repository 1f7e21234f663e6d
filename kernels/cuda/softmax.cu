// Softmax over rows, and losses between rows. One warp a row; blocks of (32, rows per block).

extern "C" __global__ void softmax_forward(const REAL *x, REAL *y, i64 rows, i64 cols,
                                           int logarithm) {
    const int lane = threadIdx.x;
    FOR_ROWS(r, rows) {
        const REAL *in = x + r * cols;
        ACC top = in[0], sum = ACC(0);
        for (i64 c = lane; c < cols; c += WARP) top = in[c] > top ? in[c] : top;
        top = warp_top(top);
        for (i64 c = lane; c < cols; c += WARP) sum += exp(in[c] - top);
        sum = all_lanes(sum);
        const ACC shift = top + log(sum);
        for (i64 c = lane; c < cols; c += WARP)
            y[r * cols + c] = logarithm ? in[c] - shift : exp(in[c] - top) / sum;
    }
}

extern "C" __global__ void softmax_backward(const REAL *dy, const REAL *y, REAL *dx, i64 rows,
                                            i64 cols, int logarithm) {
    const int lane = threadIdx.x;
    FOR_ROWS(r, rows) {
        const REAL *g = dy + r * cols, *out = y + r * cols;
        ACC sum = ACC(0);
        for (i64 c = lane; c < cols; c += WARP) sum += logarithm ? g[c] : g[c] * out[c];
        sum = all_lanes(sum);
        for (i64 c = lane; c < cols; c += WARP)
            dx[r * cols + c] = logarithm ? g[c] - exp(out[c]) * sum : out[c] * (g[c] - sum);
    }
}

// Relative L2 error of one row, |x - t| / |t|; |x - t| where |t| is at most `least`.
__device__ ACC relative_error(const REAL *x, const ACC *t, REAL *dx, i64 n, ACC scale, ACC least) {
    ACC error = ACC(0), norm = ACC(0);
    for (i64 i = threadIdx.x; i < n; i += WARP) {
        const ACC e = x[i] - t[i];
        error += e * e;
        norm += t[i] * t[i];
    }
    error = sqrt(all_lanes(error));
    norm = sqrt(all_lanes(norm));
    if (norm <= least) norm = ACC(1);
    // where x equals t the norm has no derivative: 0 is in its subdifferential
    const ACC s = error == ACC(0) ? ACC(0) : scale / (error * norm);
    for (i64 i = threadIdx.x; i < n; i += WARP) dx[i] = (x[i] - t[i]) * s;
    return error / norm;
}

// delta: the threshold of Huber's; relative L2 errors are absolute for norms up to it.
extern "C" __global__ void pair_loss(const REAL *x, const ACC *target, ACC *loss, REAL *dx,
                                     i64 rows, i64 cols, ACC scale, int kind, ACC delta) {
    FOR_ROWS(r, rows) {
        if (kind == LOSS_RELATIVE_L2) {
            const i64 at = r * cols;
            const ACC found = relative_error(x + at, target + at, dx + at, cols, scale, delta);
            if (threadIdx.x == 0) loss[r] = found;
            continue;
        }
        ACC sum = ACC(0);
        for (i64 c = r * cols + threadIdx.x; c < (r + 1) * cols; c += WARP) {
            const ACC e = x[c] - target[c], a = e < ACC(0) ? -e : e;
            if (kind == LOSS_MSE) {
                sum += e * e;
                dx[c] = ACC(2) * e * scale;
            } else if (kind == LOSS_HUBER) {
                sum += a <= delta ? ACC(0.5) * e * e : delta * (a - ACC(0.5) * delta);
                dx[c] = (a <= delta ? e : e < ACC(0) ? -delta : delta) * scale;
            } else if (kind == LOSS_MAE) {
                sum += a;
                dx[c] = e > ACC(0) ? scale : e < ACC(0) ? -scale : e * scale;
            } else {
                const ACC v = x[c], size = v < ACC(0) ? -v : v;
                sum += (v > ACC(0) ? v : ACC(0)) - v * target[c] + log1p(exp(-size));
                dx[c] = (ACC(1) / (ACC(1) + exp(-v)) - target[c]) * scale;
            }
        }
        sum = warp_sum(sum);
        if (threadIdx.x == 0) loss[r] = sum;
    }
}
