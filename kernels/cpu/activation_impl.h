/* Activations and their gradients, and dropout. */
#define INV_SQRT2 ((REAL)0.70710678118654752)
#define INV_SQRT_2PI ((REAL)0.39894228040143268)
#define SQRT_2_PI ((REAL)0.79788456080286536)
#define CUBIC ((REAL)0.044715)

int NAME(act_forward)(const REAL *x, REAL *y, long n, int kind) {
#define LOOP(VALUE)                \
    PARALLEL_FOR(n * 8)            \
    for (long i = 0; i < n; i++) { \
        const REAL v = x[i];       \
        y[i] = VALUE;              \
    }                              \
    break
    switch (kind) {
    case ACT_RELU: LOOP(v < 0 ? 0 : v);
    case ACT_GELU: LOOP((REAL)0.5 * v * (1 + NAME(fast_erf)(v * INV_SQRT2)));
    case ACT_GELU_TANH:
        LOOP((REAL)0.5 * v * (1 + NAME(fast_tanh)(SQRT_2_PI * (v + CUBIC * v * v * v))));
    case ACT_SILU: LOOP(v * NAME(sigmoid)(v));
    case ACT_TANH: LOOP(NAME(fast_tanh)(v));
    default: LOOP(NAME(sigmoid)(v));
    }
#undef LOOP
    return 0;
}

ALWAYS_INLINE REAL NAME(gelu_slope)(REAL v) {
    return (REAL)0.5 * (1 + NAME(fast_erf)(v * INV_SQRT2)) +
           v * INV_SQRT_2PI * NAME(fast_exp)((REAL)-0.5 * v * v);
}
ALWAYS_INLINE REAL NAME(gelu_tanh_slope)(REAL v) {
    const REAL t = NAME(fast_tanh)(SQRT_2_PI * (v + CUBIC * v * v * v));
    return (REAL)0.5 * (1 + t) + (REAL)0.5 * v * (1 - t * t) * SQRT_2_PI * (1 + 3 * CUBIC * v * v);
}
ALWAYS_INLINE REAL NAME(silu_slope)(REAL v) {
    const REAL s = NAME(sigmoid)(v);
    return s * (1 + v * (1 - s));
}

/* dx = dy * act'(x), from the input x and the output y; dx may be dy. */
int NAME(act_backward)(const REAL *dy, const REAL *x, const REAL *y, REAL *dx, long n, int kind) {
#define LOOP(SLOPE)                    \
    PARALLEL_FOR(n * 8)                \
    for (long i = 0; i < n; i++) {     \
        const REAL v = x[i], w = y[i]; \
        (void)v;                       \
        (void)w;                       \
        dx[i] = dy[i] * (SLOPE);       \
    }                                  \
    break
    switch (kind) {
    case ACT_RELU: LOOP(w > 0 ? 1 : 0);
    case ACT_GELU: LOOP(NAME(gelu_slope)(v));
    case ACT_GELU_TANH: LOOP(NAME(gelu_tanh_slope)(v));
    case ACT_SILU: LOOP(NAME(silu_slope)(v));
    case ACT_TANH: LOOP(1 - w * w);
    default: LOOP(w * (1 - w));
    }
#undef LOOP
    return 0;
}

/* y = x / keep where kept, else 0. drawn: seed, step, part. Element i is kept by word i % 4 of
 * Philox4x32-10 (Salmon et al., 2011) with counter (i / 4, step, stream + part) and key seed: the
 * same mask forwards and backwards, on every device, without storing it. */
int NAME(dropout)(const REAL *x, REAL *y, long n, double keep, const long *drawn, long stream) {
    const long seed = drawn[0], step = drawn[1];
    const REAL scale = (REAL)(1 / keep);
    const uint32_t limit = keep >= 1 ? 0xffffffffu : (uint32_t)(keep * 4294967296.0);
    PARALLEL_FOR(n * 8)
    for (long group = 0; group < (n + 3) / 4; group++) {
        uint32_t c[4] = {(uint32_t)group, (uint32_t)((uint64_t)group >> 32), (uint32_t)step,
                         (uint32_t)(stream + drawn[2])};
        uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)((uint64_t)seed >> 32);
        for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
            const uint64_t a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
            const uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k0, (uint32_t)b,
                                      (uint32_t)(a >> 32) ^ c[3] ^ k1, (uint32_t)a};
            memcpy(c, next, sizeof c);
        }
        for (long i = 4 * group; i < n && i < 4 * group + 4; i++)
            y[i] = c[i & 3] < limit ? x[i] * scale : 0;
    }
    return 0;
}
#undef INV_SQRT2
#undef INV_SQRT_2PI
#undef SQRT_2_PI
#undef CUBIC
