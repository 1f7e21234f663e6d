/* Optimizer steps, one fused pass over the flat buffers. */

/* SGD with momentum and weight decay (Sutskever et al., 2013, in the form the usual frameworks
 * use): g += decay * p;  v = momentum * v + g;  p -= rate * (nesterov ? g + momentum * v : v). */
int NAME(sgd_step)(REAL *p, const REAL *g, REAL *v, long n, double rate, double momentum,
                   double decay, int nesterov) {
    const REAL lr = (REAL)rate, mu = (REAL)momentum, wd = (REAL)decay;
    PARALLEL_FOR(n)
    for (long i = 0; i < n; i++) {
        const REAL grad = g[i] + wd * p[i];
        const REAL speed = mu * v[i] + grad;
        v[i] = speed;
        p[i] -= lr * (nesterov ? grad + mu * speed : speed);
    }
    return 0;
}

/* Adam (Kingma and Ba, 2015); decoupled: AdamW (Loshchilov and Hutter, 2019). fix1, fix2: 1 -
 * beta^step, the bias corrections. */
int NAME(adam_step)(REAL *p, const REAL *g, REAL *m, REAL *v, long n, double rate, double beta1,
                    double beta2, double eps, double decay, double fix1, double fix2,
                    int decoupled) {
    const REAL b1 = (REAL)beta1, b2 = (REAL)beta2, e = (REAL)eps,
               coupled = decoupled ? 0 : (REAL)decay;
    const REAL shrink = decoupled ? (REAL)(1 - rate * decay) : 1, size = (REAL)(rate / fix1),
               root = (REAL)(1 / sqrt(fix2));
    PARALLEL_FOR(n)
    for (long i = 0; i < n; i++) {
        const REAL grad = g[i] + coupled * p[i];
        const REAL first = b1 * m[i] + (1 - b1) * grad, second = b2 * v[i] + (1 - b2) * grad * grad;
        m[i] = first;
        v[i] = second;
        p[i] = shrink * p[i] -
               size * first /
                   ((REAL)(sizeof(REAL) == 4 ? sqrtf((float)second) : sqrt((double)second)) * root +
                    e);
    }
    return 0;
}

/* u = the step of Adam with decoupled decay, before the learning rate (for LAMB: You et al., 2020).
 */
int NAME(adam_direction)(const REAL *p, const REAL *g, REAL *m, REAL *v, REAL *u, long n,
                         double beta1, double beta2, double eps, double decay, double fix1,
                         double fix2) {
    const REAL b1 = (REAL)beta1, b2 = (REAL)beta2, e = (REAL)eps, wd = (REAL)decay,
               f1 = (REAL)(1 / fix1), root = (REAL)(1 / sqrt(fix2));
    PARALLEL_FOR(n)
    for (long i = 0; i < n; i++) {
        const REAL first = b1 * m[i] + (1 - b1) * g[i], second = b2 * v[i] + (1 - b2) * g[i] * g[i];
        m[i] = first;
        v[i] = second;
        u[i] = first * f1 /
                   ((REAL)(sizeof(REAL) == 4 ? sqrtf((float)second) : sqrt((double)second)) * root +
                    e) +
               wd * p[i];
    }
    return 0;
}

/* squares (slots): sums of squares of x[starts[s], stops[s]). */
int NAME(slot_squares)(const REAL *x, const int64_t *starts, const int64_t *stops, double *squares,
                       long slots) {
    PARALLEL_FOR(slots << 12)
    for (long s = 0; s < slots; s++) {
        double sum = 0;
        for (long first = starts[s]; first < stops[s]; first += 256) {
            const long last = stops[s] < first + 256 ? stops[s] : first + 256;
            REAL part = 0;
#pragma omp simd reduction(+ : part)
            for (long i = first; i < last; i++) part += x[i] * x[i];
            sum += (double)part;
        }
        squares[s] = sum;
    }
    return 0;
}

/* x[starts[s], stops[s]) *= factors[s]. */
int NAME(slot_scale)(REAL *x, const int64_t *starts, const int64_t *stops, const double *factors,
                     long slots) {
    PARALLEL_FOR(slots << 12)
    for (long s = 0; s < slots; s++)
        for (long i = starts[s]; i < stops[s]; i++) x[i] *= (REAL)factors[s];
    return 0;
}

/* p -= lr * g in blocks of 16 elements that have any gradient; the others are not even written:
 * other processes may be at them. */
int NAME(sparse_sgd)(REAL *p, const REAL *g, long n, double lr) {
    const REAL rate = (REAL)lr;
    for (long at = 0; at < n; at += 16) {
        const long m = n - at < 16 ? n - at : 16;
        int any = 0;
        for (long i = at; i < at + m; i++) any |= g[i] != 0;
        if (any)
            for (long i = at; i < at + m; i++) p[i] -= rate * g[i];
    }
    return 0;
}
