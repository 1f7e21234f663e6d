/* Normalization. Rows: layer norm (center) and RMS norm. Segments: x (segments, rows, cols) is
 * normalized for each segment and column: batch norm is one segment, group and instance norm have
 * one for each sample. */

/* y = (x - mean) * rstd * gamma + beta for each row; without center mean is 0 and beta may be NULL.
 * Keeps mean and rstd (rows). */
int NAME(row_norm_forward)(const REAL *x, const REAL *gamma, const REAL *beta, REAL *y, REAL *mean,
                           REAL *rstd, long rows, long cols, double eps, int center) {
    PARALLEL_FOR(rows * cols)
    for (long r = 0; r < rows; r++) {
        const REAL *in = x + r * cols;
        REAL *out = y + r * cols, sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
        for (long c = 0; c < cols; c++) sum += in[c];
        const REAL m = center ? sum / (REAL)cols : 0;
#pragma omp simd reduction(+ : square)
        for (long c = 0; c < cols; c++) square += (in[c] - m) * (in[c] - m);
        const REAL s = (REAL)1 / (REAL)sqrt((double)square / (double)cols + eps);
        mean[r] = m;
        rstd[r] = s;
        if (beta)
            for (long c = 0; c < cols; c++) out[c] = (in[c] - m) * s * gamma[c] + beta[c];
        else
            for (long c = 0; c < cols; c++) out[c] = (in[c] - m) * s * gamma[c];
    }
    return 0;
}

int NAME(row_norm_backward)(const REAL *dy, const REAL *x, const REAL *gamma, const REAL *mean,
                            const REAL *rstd, REAL *dx, long rows, long cols, int center) {
    PARALLEL_FOR(rows * cols)
    for (long r = 0; r < rows; r++) {
        const REAL *in = x + r * cols, *g = dy + r * cols, m = mean[r], s = rstd[r];
        REAL *out = dx + r * cols, plain = 0, along = 0;
#pragma omp simd reduction(+ : plain, along)
        for (long c = 0; c < cols; c++) {
            const REAL w = g[c] * gamma[c];
            plain += w;
            along += w * (in[c] - m) * s;
        }
        plain = center ? plain / (REAL)cols : 0;
        along /= (REAL)cols;
        for (long c = 0; c < cols; c++)
            out[c] = s * (g[c] * gamma[c] - plain - (in[c] - m) * s * along);
    }
    return 0;
}

/* dgamma = sum over rows of dy * normalized x; dbeta = sum of dy, unless NULL. */
int NAME(row_norm_parameters)(const REAL *dy, const REAL *x, const REAL *mean, const REAL *rstd,
                              REAL *dgamma, REAL *dbeta, long rows, long cols) {
    memset(dgamma, 0, (size_t)cols * sizeof(REAL));
    if (dbeta) memset(dbeta, 0, (size_t)cols * sizeof(REAL));
    for (long r = 0; r < rows; r++, dy += cols, x += cols) {
        const REAL m = mean[r], s = rstd[r];
        for (long c = 0; c < cols; c++) dgamma[c] += dy[c] * (x[c] - m) * s;
        if (dbeta)
            for (long c = 0; c < cols; c++) dbeta[c] += dy[c];
    }
    return 0;
}

/* mean and m2 (segments, cols): mean, and sum of squared deviations, merged block by block (Chan,
 * Golub and LeVeque, 1979). */
int NAME(segment_moments)(const REAL *x, REAL *mean, REAL *m2, long segments, long rows,
                          long cols) {
    enum { BLOCK = 64 };
    REAL *scratch =
        mpidl_scratch(SCRATCH_OTHER, (size_t)(2 * cols * mpidl_threads + 1) * sizeof(REAL));
    if (!scratch) return MPIDL_NO_MEMORY;
    PARALLEL_FOR(segments > 1 ? segments * rows * cols : 0)
    for (long s = 0; s < segments; s++) {
        REAL *sum = scratch + 2 * cols * THREAD, *square = sum + cols, *m = mean + s * cols,
             *q = m2 + s * cols;
        for (long c = 0; c < cols; c++) m[c] = q[c] = 0;
        for (long first = 0; first < rows; first += BLOCK) {
            const long count = rows - first < BLOCK ? rows - first : BLOCK;
            const REAL *block = x + (s * rows + first) * cols;
            memset(sum, 0, (size_t)(2 * cols) * sizeof(REAL));
            for (long r = 0; r < count; r++)
                for (long c = 0; c < cols; c++) sum[c] += block[r * cols + c];
            for (long c = 0; c < cols; c++) sum[c] /= (REAL)count;
            for (long r = 0; r < count; r++)
                for (long c = 0; c < cols; c++) {
                    const REAL d = block[r * cols + c] - sum[c];
                    square[c] += d * d;
                }
            const REAL share = (REAL)count / (REAL)(first + count), weight = (REAL)first * share;
            for (long c = 0; c < cols; c++) {
                const REAL d = sum[c] - m[c];
                m[c] += d * share;
                q[c] += square[c] + d * d * weight;
            }
        }
    }
    return 0;
}

/* y = act(x * scale + shift + residual); scale, shift (segments, cols); residual as x, or NULL. */
int NAME(segment_affine)(const REAL *x, const REAL *scale, const REAL *shift, const REAL *residual,
                         REAL *y, long segments, long rows, long cols, int relu) {
    PARALLEL_FOR(segments * rows * cols)
    for (long r = 0; r < segments * rows; r++) {
        const REAL *in = x + r * cols, *more = residual ? residual + r * cols : NULL,
                   *a = scale + r / rows * cols, *b = shift + r / rows * cols;
        REAL *out = y + r * cols;
        if (more)
            for (long c = 0; c < cols; c++) out[c] = in[c] * a[c] + b[c] + more[c];
        else
            for (long c = 0; c < cols; c++) out[c] = in[c] * a[c] + b[c];
        if (relu)
            for (long c = 0; c < cols; c++) out[c] = out[c] < 0 ? 0 : out[c];
    }
    return 0;
}

/* With y: dy = 0 where y <= 0 first, in place. Then sum_dy and sum_dyx (segments, cols): sums of dy
 * and of dy * (x - mean). */
int NAME(segment_dots)(REAL *dy, const REAL *x, const REAL *y, const REAL *mean, REAL *sum_dy,
                       REAL *sum_dyx, long segments, long rows, long cols) {
    PARALLEL_FOR(segments > 1 ? segments * rows * cols : 0)
    for (long s = 0; s < segments; s++) {
        REAL *a = sum_dy + s * cols, *b = sum_dyx + s * cols;
        const REAL *m = mean + s * cols;
        for (long c = 0; c < cols; c++) a[c] = b[c] = 0;
        for (long r = s * rows; r < (s + 1) * rows; r++) {
            REAL *g = dy + r * cols;
            const REAL *in = x + r * cols;
            if (y)
                for (long c = 0; c < cols; c++) g[c] = y[r * cols + c] > 0 ? g[c] : 0;
            for (long c = 0; c < cols; c++) {
                a[c] += g[c];
                b[c] += g[c] * (in[c] - m[c]);
            }
        }
    }
    return 0;
}

/* dx = a * dy + b * x + c; a, b, c (segments, cols). dx may be dy. */
int NAME(segment_dx)(const REAL *dy, const REAL *x, const REAL *a, const REAL *b, const REAL *c,
                     REAL *dx, long segments, long rows, long cols) {
    PARALLEL_FOR(segments * rows * cols)
    for (long r = 0; r < segments * rows; r++) {
        const long s = r / rows * cols;
        for (long q = 0; q < cols; q++)
            dx[r * cols + q] = a[s + q] * dy[r * cols + q] + b[s + q] * x[r * cols + q] + c[s + q];
    }
    return 0;
}
