/* Pooling with windows that may overlap and hang over the edge (padding counts neither as a maximum
 * nor in an average). NHWC. */

ALWAYS_INLINE long NAME(low)(long o, long stride, long pad) {
    return o * stride - pad < 0 ? 0 : o * stride - pad;
}
ALWAYS_INLINE long NAME(high)(long o, long stride, long pad, long k, long size) {
    return o * stride - pad + k > size ? size : o * stride - pad + k;
}

/* y: maxima; place (int64): where in its image (row * w + column) each was found first. A NaN is
 * kept. */
int NAME(maxpool_forward)(const REAL *x, REAL *y, int64_t *place, const pool_geometry *g) {
    PARALLEL_FOR(g->n * g->oh * g->ow * g->k * g->k * g->c)
    for (long o = 0; o < g->n * g->oh * g->ow; o++) {
        const long ox = o % g->ow, oy = o / g->ow % g->oh, image = o / g->ow / g->oh;
        REAL *top = y + o * g->c;
        int64_t *at = place + o * g->c;
        int fresh = 1;
        for (long r = NAME(low)(oy, g->stride, g->pad);
             r < NAME(high)(oy, g->stride, g->pad, g->k, g->h); r++)
            for (long q = NAME(low)(ox, g->stride, g->pad);
                 q < NAME(high)(ox, g->stride, g->pad, g->k, g->w); q++, fresh = 0) {
                const REAL *p = x + ((image * g->h + r) * g->w + q) * g->c;
                for (long j = 0; j < g->c; j++)
                    if (fresh || p[j] > top[j] || (p[j] != p[j] && top[j] == top[j])) {
                        top[j] = p[j];
                        at[j] = r * g->w + q;
                    }
            }
    }
    return 0;
}

/* dx: each dy goes to the place of its maximum. */
int NAME(maxpool_backward)(const REAL *dy, const int64_t *place, REAL *dx, const pool_geometry *g) {
    PARALLEL_FOR(g->n > 1 ? g->n * g->h * g->w * g->c : 0)
    for (long image = 0; image < g->n; image++) {
        REAL *to = dx + image * g->h * g->w * g->c;
        memset(to, 0, (size_t)(g->h * g->w * g->c) * sizeof(REAL));
        for (long o = image * g->oh * g->ow; o < (image + 1) * g->oh * g->ow; o++)
            for (long j = 0; j < g->c; j++) to[place[o * g->c + j] * g->c + j] += dy[o * g->c + j];
    }
    return 0;
}

int NAME(avgpool_forward)(const REAL *x, REAL *y, const pool_geometry *g) {
    PARALLEL_FOR(g->n * g->oh * g->ow * g->k * g->k * g->c)
    for (long o = 0; o < g->n * g->oh * g->ow; o++) {
        const long ox = o % g->ow, oy = o / g->ow % g->oh, image = o / g->ow / g->oh;
        const long top = NAME(low)(oy, g->stride, g->pad),
                   bottom = NAME(high)(oy, g->stride, g->pad, g->k, g->h);
        const long left = NAME(low)(ox, g->stride, g->pad),
                   right = NAME(high)(ox, g->stride, g->pad, g->k, g->w);
        REAL *to = y + o * g->c;
        memset(to, 0, (size_t)g->c * sizeof(REAL));
        for (long r = top; r < bottom; r++)
            for (long q = left; q < right; q++)
                for (long j = 0; j < g->c; j++)
                    to[j] += x[((image * g->h + r) * g->w + q) * g->c + j];
        const REAL share = (REAL)1 / (REAL)((bottom - top) * (right - left));
        for (long j = 0; j < g->c; j++) to[j] *= share;
    }
    return 0;
}

int NAME(avgpool_backward)(const REAL *dy, REAL *dx, const pool_geometry *g) {
    PARALLEL_FOR(g->n > 1 ? g->n * g->h * g->w * g->c : 0)
    for (long image = 0; image < g->n; image++) {
        memset(dx + image * g->h * g->w * g->c, 0, (size_t)(g->h * g->w * g->c) * sizeof(REAL));
        for (long o = image * g->oh * g->ow; o < (image + 1) * g->oh * g->ow; o++) {
            const long ox = o % g->ow, oy = o / g->ow % g->oh;
            const long top = NAME(low)(oy, g->stride, g->pad),
                       bottom = NAME(high)(oy, g->stride, g->pad, g->k, g->h);
            const long left = NAME(low)(ox, g->stride, g->pad),
                       right = NAME(high)(ox, g->stride, g->pad, g->k, g->w);
            const REAL share = (REAL)1 / (REAL)((bottom - top) * (right - left));
            for (long r = top; r < bottom; r++)
                for (long q = left; q < right; q++)
                    for (long j = 0; j < g->c; j++)
                        dx[((image * g->h + r) * g->w + q) * g->c + j] += dy[o * g->c + j] * share;
        }
    }
    return 0;
}
