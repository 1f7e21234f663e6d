/* Element-wise passes: bias, ReLU and its gradient, input normalization, column sums. */

/* y[r, c] = act(y[r, c] + bias[c]) in place. */
int NAME(bias_act)(REAL *y, const REAL *bias, long rows, long cols, int relu) {
    PARALLEL_FOR(rows * cols)
    for (long r = 0; r < rows; r++) {
        REAL *row = y + r * cols;
        if (relu)
            for (long c = 0; c < cols; c++) {
                const REAL v = row[c] + bias[c];
                row[c] = v < 0 ? 0 : v; /* keeps a NaN */
            }
        else
            for (long c = 0; c < cols; c++) row[c] += bias[c];
    }
    return 0;
}

/* y = max(x, 0); a NaN stays. x may be y. */
int NAME(relu_forward)(const REAL *x, REAL *y, long n) {
    PARALLEL_FOR(n)
    for (long i = 0; i < n; i++) y[i] = x[i] < 0 ? 0 : x[i];
    return 0;
}

/* dx = dy where y > 0, else 0. dx may be dy. */
int NAME(relu_backward)(const REAL *dy, const REAL *y, REAL *dx, long n) {
    PARALLEL_FOR(n)
    for (long i = 0; i < n; i++) dx[i] = y[i] > 0 ? dy[i] : 0;
    return 0;
}

/* sums[c] = sum over r of x[r, c]. */
int NAME(column_sums)(const REAL *x, REAL *sums, long rows, long cols) {
    memset(sums, 0, (size_t)cols * sizeof(REAL));
    for (long r = 0; r < rows; r++, x += cols)
        for (long c = 0; c < cols; c++) sums[c] += x[c];
    return 0;
}

/* y = x * scale + shift, from bytes. */
int NAME(scale_u8)(const uint8_t *x, REAL *y, long n, double scale, double shift) {
    const REAL a = (REAL)scale, b = (REAL)shift;
    PARALLEL_FOR(n)
    for (long i = 0; i < n; i++) y[i] = (REAL)x[i] * a + b;
    return 0;
}
