/* Activations and their gradients, and dropout. */
#define INV_SQRT2 ((REAL)0.70710678118654752)
#define INV_SQRT_2PI ((REAL)0.39894228040143268)
#define SQRT_2_PI ((REAL)0.79788456080286536)
#define CUBIC ((REAL)0.044715)

/* y[i] = f(x[i]), and dx[i] = dy[i] * slope(from[i]), for all i < n. */
#define MAP(f, x, y, n)   \
    PARALLEL_FOR((n) * 8) \
    for (long i = 0; i < (n); i++) (y)[i] = f((x)[i])
#define MAP_SLOPE(slope, dy, from, dx, n) \
    PARALLEL_FOR((n) * 8)                 \
    for (long i = 0; i < (n); i++) (dx)[i] = (dy)[i] * slope((from)[i])

ALWAYS_INLINE REAL NAME(relu)(REAL v) {
    return v < 0 ? 0 : v;
}
ALWAYS_INLINE REAL NAME(gelu)(REAL v) {
    return (REAL)0.5 * v * (1 + NAME(fast_erf)(v * INV_SQRT2));
}
ALWAYS_INLINE REAL NAME(gelu_tanh)(REAL v) {
    return (REAL)0.5 * v * (1 + NAME(fast_tanh)(SQRT_2_PI * (v + CUBIC * v * v * v)));
}
ALWAYS_INLINE REAL NAME(silu)(REAL v) {
    return v * NAME(sigmoid)(v);
}

int NAME(act_forward)(const REAL *x, REAL *y, long n, int kind) {
    switch (kind) {
    case ACT_RELU: MAP(NAME(relu), x, y, n); break;
    case ACT_GELU: MAP(NAME(gelu), x, y, n); break;
    case ACT_GELU_TANH: MAP(NAME(gelu_tanh), x, y, n); break;
    case ACT_SILU: MAP(NAME(silu), x, y, n); break;
    case ACT_TANH: MAP(NAME(fast_tanh), x, y, n); break;
    default: MAP(NAME(sigmoid), x, y, n);
    }
    return 0;
}

/* Slopes of ReLU, tanh and sigmoid from the output w, of the others from the input v. */
ALWAYS_INLINE REAL NAME(relu_slope)(REAL w) {
    return w > 0 ? 1 : 0;
}
ALWAYS_INLINE REAL NAME(tanh_slope)(REAL w) {
    return 1 - w * w;
}
ALWAYS_INLINE REAL NAME(sigmoid_slope)(REAL w) {
    return w * (1 - w);
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
    switch (kind) {
    case ACT_RELU: MAP_SLOPE(NAME(relu_slope), dy, y, dx, n); break;
    case ACT_GELU: MAP_SLOPE(NAME(gelu_slope), dy, x, dx, n); break;
    case ACT_GELU_TANH: MAP_SLOPE(NAME(gelu_tanh_slope), dy, x, dx, n); break;
    case ACT_SILU: MAP_SLOPE(NAME(silu_slope), dy, x, dx, n); break;
    case ACT_TANH: MAP_SLOPE(NAME(tanh_slope), dy, y, dx, n); break;
    default: MAP_SLOPE(NAME(sigmoid_slope), dy, y, dx, n);
    }
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
        philox(c, seed);
        for (long i = 4 * group; i < n && i < 4 * group + 4; i++)
            y[i] = c[i & 3] < limit ? x[i] * scale : 0;
    }
    return 0;
}
#undef INV_SQRT2
#undef INV_SQRT_2PI
#undef SQRT_2_PI
#undef CUBIC
#undef MAP
#undef MAP_SLOPE
