/* Pooling with windows that may overlap and hang over the edge (padding counts neither as a maximum nor in an average). NHWC. */
#define GEOMETRY long n, long h, long w, long channels, long k, long stride, long pad, long oh, long ow

ALWAYS_INLINE long NAME(low)(long o, long stride, long pad) { return o * stride - pad < 0 ? 0 : o * stride - pad; }
ALWAYS_INLINE long NAME(high)(long o, long stride, long pad, long k, long size) { return o * stride - pad + k > size ? size : o * stride - pad + k; }

/* y: maxima; place (int64): where in its image (row * w + column) each was found first. A NaN is kept. */
int NAME(maxpool_forward)(const REAL *x, REAL *y, int64_t *place, GEOMETRY) {
    PARALLEL_FOR(n *oh *ow *k *k *channels)
    for (long o = 0; o < n * oh * ow; o++) {
        const long ox = o % ow, oy = o / ow % oh, image = o / ow / oh;
        REAL *top = y + o * channels;
        int64_t *at = place + o * channels;
        int fresh = 1;
        for (long r = NAME(low)(oy, stride, pad); r < NAME(high)(oy, stride, pad, k, h); r++)
            for (long q = NAME(low)(ox, stride, pad); q < NAME(high)(ox, stride, pad, k, w); q++, fresh = 0) {
                const REAL *p = x + ((image * h + r) * w + q) * channels;
                for (long c = 0; c < channels; c++)
                    if (fresh || p[c] > top[c] || (p[c] != p[c] && top[c] == top[c])) top[c] = p[c], at[c] = r * w + q;
            }
    }
    return 0;
}

/* dx: each dy goes to the place of its maximum. */
int NAME(maxpool_backward)(const REAL *dy, const int64_t *place, REAL *dx, GEOMETRY) {
    (void)k, (void)stride, (void)pad;
    PARALLEL_FOR(n > 1 ? n * h * w * channels : 0)
    for (long image = 0; image < n; image++) {
        REAL *to = dx + image * h * w * channels;
        memset(to, 0, (size_t)(h * w * channels) * sizeof(REAL));
        for (long o = image * oh * ow; o < (image + 1) * oh * ow; o++)
            for (long c = 0; c < channels; c++) to[place[o * channels + c] * channels + c] += dy[o * channels + c];
    }
    return 0;
}

int NAME(avgpool_forward)(const REAL *x, REAL *y, GEOMETRY) {
    PARALLEL_FOR(n *oh *ow *k *k *channels)
    for (long o = 0; o < n * oh * ow; o++) {
        const long ox = o % ow, oy = o / ow % oh, image = o / ow / oh;
        const long top = NAME(low)(oy, stride, pad), bottom = NAME(high)(oy, stride, pad, k, h);
        const long left = NAME(low)(ox, stride, pad), right = NAME(high)(ox, stride, pad, k, w);
        REAL *to = y + o * channels;
        memset(to, 0, (size_t)channels * sizeof(REAL));
        for (long r = top; r < bottom; r++)
            for (long q = left; q < right; q++)
                for (long c = 0; c < channels; c++) to[c] += x[((image * h + r) * w + q) * channels + c];
        const REAL share = (REAL)1 / (REAL)((bottom - top) * (right - left));
        for (long c = 0; c < channels; c++) to[c] *= share;
    }
    return 0;
}

int NAME(avgpool_backward)(const REAL *dy, REAL *dx, GEOMETRY) {
    PARALLEL_FOR(n > 1 ? n * h * w * channels : 0)
    for (long image = 0; image < n; image++) {
        memset(dx + image * h * w * channels, 0, (size_t)(h * w * channels) * sizeof(REAL));
        for (long o = image * oh * ow; o < (image + 1) * oh * ow; o++) {
            const long ox = o % ow, oy = o / ow % oh;
            const long top = NAME(low)(oy, stride, pad), bottom = NAME(high)(oy, stride, pad, k, h);
            const long left = NAME(low)(ox, stride, pad), right = NAME(high)(ox, stride, pad, k, w);
            const REAL share = (REAL)1 / (REAL)((bottom - top) * (right - left));
            for (long r = top; r < bottom; r++)
                for (long q = left; q < right; q++)
                    for (long c = 0; c < channels; c++) dx[((image * h + r) * w + q) * channels + c] += dy[o * channels + c] * share;
        }
    }
    return 0;
}
#undef GEOMETRY
