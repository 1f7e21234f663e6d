/* Softmax over rows and losses between rows. */

/* y = softmax(x) of each row, or its logarithm. y may be x. */
int NAME(softmax_forward)(const REAL *x, REAL *y, long rows, long cols, int logarithm) {
    PARALLEL_FOR(rows * cols * 8)
    for (long r = 0; r < rows; r++) {
        const REAL *in = x + r * cols;
        REAL *out = y + r * cols, top = cols ? in[0] : 0, sum = 0;
        for (long c = 1; c < cols; c++) top = in[c] > top ? in[c] : top;
        if (logarithm) {
#pragma omp simd reduction(+ : sum)
            for (long c = 0; c < cols; c++) sum += NAME(fast_exp)(in[c] - top);
            const REAL shift = top + (REAL)log((double)sum);
            for (long c = 0; c < cols; c++) out[c] = in[c] - shift;
        } else {
#pragma omp simd reduction(+ : sum)
            for (long c = 0; c < cols; c++) sum += out[c] = NAME(fast_exp)(in[c] - top);
            for (long c = 0; c < cols; c++) out[c] /= sum;
        }
    }
    return 0;
}

/* dx from dy and the output y. dx may be dy. */
int NAME(softmax_backward)(const REAL *dy, const REAL *y, REAL *dx, long rows, long cols,
                           int logarithm) {
    PARALLEL_FOR(rows * cols * 8)
    for (long r = 0; r < rows; r++) {
        const REAL *g = dy + r * cols, *out = y + r * cols;
        REAL *to = dx + r * cols, sum = 0;
        if (logarithm) {
            for (long c = 0; c < cols; c++) sum += g[c];
            for (long c = 0; c < cols; c++) to[c] = g[c] - NAME(fast_exp)(out[c]) * sum;
        } else {
            for (long c = 0; c < cols; c++) sum += g[c] * out[c];
            for (long c = 0; c < cols; c++) to[c] = out[c] * (g[c] - sum);
        }
    }
    return 0;
}

/* Relative L2 error of one row, |x - t| / |t| (Li et al., 2021); |x - t| where |t| is at most
 * `least`.
 */
static double NAME(relative_error)(const REAL *x, const REAL *t, REAL *dx, long n, double scale,
                                   double least) {
    double error = 0, norm = 0;
    for (long i = 0; i < n; i++) {
        const double e = (double)x[i] - (double)t[i];
        error += e * e;
        norm += (double)t[i] * (double)t[i];
    }
    error = sqrt(error);
    norm = sqrt(norm);
    if (norm <= least) norm = 1;
    /* where x equals t the norm has no derivative: 0 is in its subdifferential */
    const REAL s = error == 0 ? 0 : (REAL)(scale / (error * norm));
    for (long i = 0; i < n; i++) dx[i] = (x[i] - t[i]) * s;
    return error / norm;
}

/* loss (rows): sums over the columns of a loss between x and target; dx = its gradient * scale.
 * delta: the threshold of Huber's (1964); relative L2 errors are absolute for norms up to it. */
int NAME(pair_loss)(const REAL *x, const REAL *target, REAL *loss, REAL *dx, long rows, long cols,
                    double scale, int kind, double delta) {
    const REAL s = (REAL)scale, d = (REAL)delta;
    PARALLEL_FOR(rows * cols * 8)
    for (long r = 0; r < rows; r++) {
        double sum = 0;
        if (kind == LOSS_RELATIVE_L2) {
            const long at = r * cols;
            loss[r] = (REAL)NAME(relative_error)(x + at, target + at, dx + at, cols, scale, delta);
            continue;
        }
        for (long c = r * cols; c < (r + 1) * cols; c++) {
            const REAL e = x[c] - target[c], a = e < 0 ? -e : e;
            if (kind == LOSS_MSE) {
                sum += e * e;
                dx[c] = 2 * e * s;
            } else if (kind == LOSS_HUBER) {
                sum += a <= d ? (REAL)0.5 * e * e : d * (a - (REAL)0.5 * d);
                dx[c] = (a <= d ? e : e < 0 ? -d : d) * s;
            } else if (kind == LOSS_MAE) {
                sum += a;
                dx[c] = e > 0 ? s : e < 0 ? -s : e * s;
            } else {
                const REAL v = x[c], size = v < 0 ? -v : v;
                sum += (v > 0 ? v : 0) - v * target[c] + (REAL)log1p((double)NAME(fast_exp)(-size));
                dx[c] = (NAME(sigmoid)(v) - target[c]) * s;
            }
        }
        loss[r] = (REAL)sum;
    }
    return 0;
}
