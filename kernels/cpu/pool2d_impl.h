/* Max pooling, NHWC, windows of k x k that do not overlap (stride k); rows and columns that do not
 * fill a window are dropped. */

/* y[n, i, j, c] = max over the window of x; a NaN in the window is kept. */
int NAME(maxpool2d_forward)(const REAL *x, REAL *y, const pool_geometry *g) {
    PARALLEL_FOR(g->n * g->h * g->w * g->c)
    for (long i = 0; i < g->n; i++)
        for (long r = 0; r < g->oh; r++)
            for (long q = 0; q < g->ow; q++) {
                REAL *top = y + ((i * g->oh + r) * g->ow + q) * g->c;
                const REAL *window = x + ((i * g->h + r * g->k) * g->w + q * g->k) * g->c;
                memcpy(top, window, (size_t)g->c * sizeof(REAL));
                for (long a = 0; a < g->k; a++)
                    for (long b = a ? 0 : 1; b < g->k; b++) {
                        const REAL *p = window + (a * g->w + b) * g->c;
                        for (long j = 0; j < g->c; j++)
                            top[j] = (p[j] > top[j]) | (p[j] != p[j]) ? p[j] : top[j];
                    }
            }
    return 0;
}

/* dx: dy at the first element of each window that equals the maximum, 0 elsewhere. With relu, also
 * 0 where x <= 0 (the gradient of a ReLU that made x). */
int NAME(maxpool2d_backward)(const REAL *dy, const REAL *x, const REAL *y, REAL *dx,
                             const pool_geometry *g, int relu) {
    const long line = g->w * g->c;
    MASK *masks = malloc((size_t)(g->c * mpidl_threads) * sizeof(MASK));
    if (!masks) return MPIDL_NO_MEMORY;
    if (g->h % g->k || g->w % g->k) memset(dx, 0, (size_t)(g->n * g->h * line) * sizeof(REAL));
    PARALLEL_FOR(g->n * g->h * g->w * g->c)
    for (long i = 0; i < g->n; i++)
        for (long r = 0; r < g->oh; r++)
            for (long q = 0; q < g->ow; q++) {
                MASK *open = masks + THREAD * g->c;
                const REAL *top = y + ((i * g->oh + r) * g->ow + q) * g->c,
                           *grad = dy + ((i * g->oh + r) * g->ow + q) * g->c;
                const long at = (i * g->h + r * g->k) * line + q * g->k * g->c;
                for (long j = 0; j < g->c; j++) open[j] = !relu | (top[j] > 0);
                for (long a = 0; a < g->k; a++)
                    for (long b = 0; b < g->k; b++) {
                        const REAL *p = x + at + a * line + b * g->c;
                        REAL *d = dx + at + a * line + b * g->c;
                        for (long j = 0; j < g->c; j++) {
                            const MASK hit = open[j] & ((p[j] == top[j]) | (top[j] != top[j]));
                            d[j] = hit ? grad[j] : 0;
                            open[j] &= ~hit;
                        }
                    }
            }
    free(masks);
    return 0;
}
