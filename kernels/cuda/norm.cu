// Normalization of rows (layer norm with center, RMS norm without) and of segments (batch, group,
// instance norm).

extern "C" __global__ void row_norm_forward(const REAL *x, const ACC *gamma, const ACC *beta,
                                            REAL *y, ACC *mean, ACC *rstd, i64 rows, i64 cols,
                                            ACC eps, int center) {
    const int lane = threadIdx.x;
    FOR_ROWS(r, rows) {
        const REAL *in = x + r * cols;
        ACC sum = ACC(0), square = ACC(0);
        if (center)
            for (i64 c = lane; c < cols; c += WARP) sum += in[c];
        const ACC m = all_lanes(sum) / ACC(cols);
        for (i64 c = lane; c < cols; c += WARP) square += (in[c] - m) * (in[c] - m);
        const ACC s = ACC(1) / sqrt(all_lanes(square) / ACC(cols) + eps);
        for (i64 c = lane; c < cols; c += WARP)
            y[r * cols + c] = (in[c] - m) * s * gamma[c] + (beta ? beta[c] : ACC(0));
        if (lane == 0) {
            mean[r] = m;
            rstd[r] = s;
        }
    }
}

extern "C" __global__ void row_norm_backward(const REAL *dy, const REAL *x, const ACC *gamma,
                                             const ACC *mean, const ACC *rstd, REAL *dx, i64 rows,
                                             i64 cols, int center) {
    const int lane = threadIdx.x;
    FOR_ROWS(r, rows) {
        const REAL *in = x + r * cols, *g = dy + r * cols;
        const ACC m = mean[r], s = rstd[r];
        ACC plain = ACC(0), along = ACC(0);
        for (i64 c = lane; c < cols; c += WARP) {
            const ACC w = g[c] * gamma[c];
            plain += w;
            along += w * (in[c] - m) * s;
        }
        plain = center ? all_lanes(plain) / ACC(cols) : all_lanes(plain) * ACC(0);
        along = all_lanes(along) / ACC(cols);
        for (i64 c = lane; c < cols; c += WARP)
            dx[r * cols + c] = s * (g[c] * gamma[c] - plain - (in[c] - m) * s * along);
    }
}

// Sums two values a thread over threadIdx.y, for blocks of (32, 8): a column each; the row
// threadIdx.y == 0 has the results.
__device__ inline void column_pair(ACC *a, ACC *b) {
    __shared__ ACC part[2][8][WARP];
    __syncthreads();
    part[0][threadIdx.y][threadIdx.x] = *a;
    part[1][threadIdx.y][threadIdx.x] = *b;
    __syncthreads();
    if (threadIdx.y == 0)
        for (int k = 1; k < 8; k++) {
            *a += part[0][k][threadIdx.x];
            *b += part[1][k][threadIdx.x];
        }
}

extern "C" __global__ void row_norm_parameters(const REAL *dy, const REAL *x, const ACC *mean,
                                               const ACC *rstd, ACC *dgamma, ACC *dbeta, i64 rows,
                                               i64 cols) {
    const i64 c = (i64)blockIdx.x * WARP + threadIdx.x;
    ACC along = ACC(0), plain = ACC(0);
    if (c < cols)
        for (i64 r = threadIdx.y; r < rows; r += 8) {
            along += dy[r * cols + c] * (x[r * cols + c] - mean[r]) * rstd[r];
            plain += dy[r * cols + c];
        }
    column_pair(&along, &plain);
    __syncthreads();
    if (threadIdx.y == 0 && c < cols) {
        dgamma[c] = along;
        if (dbeta) dbeta[c] = plain;
    }
}

extern "C" __global__ void segment_moments(const REAL *x, ACC *mean, ACC *m2, i64 segments,
                                           i64 rows, i64 cols) {
    __shared__ ACC means[WARP];
    const i64 c = (i64)blockIdx.x * WARP + threadIdx.x;
    for (i64 s = blockIdx.y; s < segments; s += gridDim.y) {
        const REAL *in = x + s * rows * cols + c;
        ACC sum = ACC(0), square = ACC(0);
        if (c < cols)
            for (i64 r = threadIdx.y; r < rows; r += 8) sum += in[r * cols];
        column_pair(&sum, &square);
        if (threadIdx.y == 0) means[threadIdx.x] = rows ? sum / ACC(rows) : ACC(0);
        __syncthreads();
        sum = ACC(0);
        if (c < cols)
            for (i64 r = threadIdx.y; r < rows; r += 8)
                square += (in[r * cols] - means[threadIdx.x]) * (in[r * cols] - means[threadIdx.x]);
        column_pair(&square, &sum);
        if (threadIdx.y == 0 && c < cols) {
            mean[s * cols + c] = means[threadIdx.x];
            m2[s * cols + c] = square;
        }
        __syncthreads();
    }
}

extern "C" __global__ void segment_affine(const REAL *x, const ACC *scale, const ACC *shift,
                                          const REAL *residual, REAL *y, i64 segments, i64 rows,
                                          i64 cols, int relu) {
    FOR_EACH(i, segments * rows * cols) {
        const i64 at = i / (rows * cols) * cols + i % cols;
        const ACC v = x[i] * scale[at] + shift[at] + (residual ? ACC(residual[i]) : ACC(0));
        y[i] = relu && v < ACC(0) ? ACC(0) : v;
    }
}

extern "C" __global__ void segment_dots(REAL *dy, const REAL *x, const REAL *y, const ACC *mean,
                                        ACC *sum_dy, ACC *sum_dyx, i64 segments, i64 rows,
                                        i64 cols) {
    const i64 c = (i64)blockIdx.x * WARP + threadIdx.x;
    for (i64 s = blockIdx.y; s < segments; s += gridDim.y) {
        ACC plain = ACC(0), along = ACC(0);
        if (c < cols)
            for (i64 r = threadIdx.y; r < rows; r += 8) {
                const i64 i = (s * rows + r) * cols + c;
                if (y && !(y[i] > ACC(0))) dy[i] = ACC(0);
                plain += dy[i];
                along += dy[i] * (x[i] - mean[s * cols + c]);
            }
        column_pair(&plain, &along);
        __syncthreads();
        if (threadIdx.y == 0 && c < cols) {
            sum_dy[s * cols + c] = plain;
            sum_dyx[s * cols + c] = along;
        }
    }
}

extern "C" __global__ void segment_dx(const REAL *dy, const REAL *x, const ACC *a, const ACC *b,
                                      const ACC *c, REAL *dx, i64 segments, i64 rows, i64 cols) {
    FOR_EACH(i, segments * rows * cols) {
        const i64 at = i / (rows * cols) * cols + i % cols;
        dx[i] = a[at] * dy[i] + b[at] * x[i] + c[at];
    }
}
