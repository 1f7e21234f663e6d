/* exp, log, tanh, erf and sine that the compiler can vectorize: for float by polynomials (below
 * 3e-7 relative, erf 2e-7 absolute), for double by the C library. Included by *_impl.h files that
 * need them. */
ALWAYS_INLINE REAL NAME(fast_exp)(REAL given) {
    if (sizeof(REAL) == 8) return (REAL)exp((double)given);
    float x = (float)given;
    x = x < -87.0f ? -87.0f : x; /* keeps a NaN */
    x = x > 88.0f ? 88.0f : x;
    const float n = rintf(x * 1.44269504f), r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f; /* Cephes' expf (Moshier, 1984) */
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    union {
        int32_t i;
        float f;
    } power = {.i = ((int32_t)n + 127) << 23};
    return (REAL)((p * r * r + r + 1.0f) * power.f);
}

ALWAYS_INLINE REAL NAME(fast_tanh)(REAL x) {
    if (sizeof(REAL) == 8) return (REAL)tanh((double)x);
    const REAL a = x < 0 ? -x : x, small = x * x;
    const REAL e = NAME(fast_exp)(-2 * a), large = (1 - e) / (1 + e);
    /* near 0 the difference would lose digits */
    const REAL near = x * (1 + small * ((REAL)-0.333333333 +
                                        small * ((REAL)0.133333333 - small * (REAL)0.0539682540)));
    const REAL signed_large = x < 0 ? -large : large;
    return a < (REAL)0.2 ? near : signed_large;
}

/* Abramowitz and Stegun (1964), 7.1.26 for float. */
ALWAYS_INLINE REAL NAME(fast_erf)(REAL x) {
    if (sizeof(REAL) == 8) return (REAL)erf((double)x);
    const REAL a = x < 0 ? -x : x, t = 1 / (1 + (REAL)0.3275911 * a);
    const REAL p =
        t * ((REAL)0.254829592 +
             t * ((REAL)-0.284496736 +
                  t * ((REAL)1.421413741 + t * ((REAL)-1.453152027 + t * (REAL)1.061405429))));
    const REAL y = 1 - p * NAME(fast_exp)(-a * a);
    return x < 0 ? -y : y;
}

/* Logarithm of a normal number; Cephes' logf (Moshier, 1984) for float. */
ALWAYS_INLINE REAL NAME(fast_log)(REAL x) {
    if (sizeof(REAL) == 8) return (REAL)log((double)x);
    union {
        float f;
        int32_t i;
    } bits = {.f = (float)x};
    const int32_t exponent = (bits.i - 0x3f3504f3) >> 23; /* mantissas from sqrt(1/2) to sqrt(2) */
    bits.i -= exponent << 23;
    const float r = bits.f - 1.0f, e = (float)exponent;
    float p = 7.0376836292e-2f;
    p = p * r - 1.1514610310e-1f;
    p = p * r + 1.1676998740e-1f;
    p = p * r - 1.2420140846e-1f;
    p = p * r + 1.4249322787e-1f;
    p = p * r - 1.6668057665e-1f;
    p = p * r + 2.0000714765e-1f;
    p = p * r - 2.4999993993e-1f;
    p = p * r + 3.3333331174e-1f;
    return (REAL)(r - 0.5f * r * r + p * r * r * r + e * 0.693147181f);
}

/* sin(2 pi t) for t within -1/4 and 1/4: the series, to 6e-8 for float. */
ALWAYS_INLINE REAL NAME(sine_of_turn)(REAL t) {
    if (sizeof(REAL) == 8) return (REAL)sin(6.283185307179586 * (double)t);
    const REAL x = (REAL)6.28318531 * t, s = x * x;
    return x * (1 + s * ((REAL)-1.66666667e-1 +
                         s * ((REAL)8.33333333e-3 +
                              s * ((REAL)-1.98412698e-4 +
                                   s * ((REAL)2.75573192e-6 - s * (REAL)2.50521084e-8)))));
}

ALWAYS_INLINE REAL NAME(sigmoid)(REAL x) {
    const REAL a = x < 0 ? x : -x, e = NAME(fast_exp)(a), small = e / (1 + e);
    return x < 0 ? small : 1 - small;
}
