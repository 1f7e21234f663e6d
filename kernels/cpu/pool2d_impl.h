/* Max pooling, NHWC, windows of k x k that do not overlap (stride k); rows and columns that do not fill a window are dropped. */

/* y[n, i, j, c] = max over the window of x; a NaN in the window is kept. */
int NAME(maxpool2d_forward)(const REAL *x, REAL *y, long n, long height, long width, long channels, long k) {
    const long oh = height / k, ow = width / k;
    PARALLEL_FOR(n * height * width * channels)
    for (long i = 0; i < n; i++)
        for (long r = 0; r < oh; r++)
            for (long q = 0; q < ow; q++) {
                REAL *top = y + ((i * oh + r) * ow + q) * channels;
                const REAL *window = x + ((i * height + r * k) * width + q * k) * channels;
                memcpy(top, window, (size_t)channels * sizeof(REAL));
                for (long a = 0; a < k; a++)
                    for (long b = a ? 0 : 1; b < k; b++) {
                        const REAL *p = window + (a * width + b) * channels;
                        for (long c = 0; c < channels; c++) top[c] = (p[c] > top[c]) | (p[c] != p[c]) ? p[c] : top[c];
                    }
            }
    return 0;
}

/* dx: dy at the first element of each window that equals the maximum, 0 elsewhere. With relu, also 0 where x <= 0 (the
 * gradient of a ReLU that made x). */
int NAME(maxpool2d_backward)(const REAL *dy, const REAL *x, const REAL *y, REAL *dx, long n, long height, long width, long channels, long k,
                             int relu) {
    const long oh = height / k, ow = width / k, line = width * channels;
    MASK *masks = malloc((size_t)(channels * mpidl_threads) * sizeof(MASK));
    if (!masks) return MPIDL_NO_MEMORY;
    if (height % k || width % k) memset(dx, 0, (size_t)(n * height * line) * sizeof(REAL));
    PARALLEL_FOR(n * height * width * channels)
    for (long i = 0; i < n; i++)
        for (long r = 0; r < oh; r++)
            for (long q = 0; q < ow; q++) {
                MASK *open = masks + THREAD * channels;
                const REAL *top = y + ((i * oh + r) * ow + q) * channels, *grad = dy + ((i * oh + r) * ow + q) * channels;
                const long at = (i * height + r * k) * line + q * k * channels;
                for (long c = 0; c < channels; c++) open[c] = !relu | (top[c] > 0);
                for (long a = 0; a < k; a++)
                    for (long b = 0; b < k; b++) {
                        const REAL *p = x + at + a * line + b * channels;
                        REAL *d = dx + at + a * line + b * channels;
                        for (long c = 0; c < channels; c++) {
                            const MASK hit = open[c] & ((p[c] == top[c]) | (top[c] != top[c]));
                            d[c] = hit ? grad[c] : 0;
                            open[c] &= ~hit;
                        }
                    }
            }
    free(masks);
    return 0;
}
