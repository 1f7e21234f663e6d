/* Optimizer steps, one fused pass over the flat buffers. */

/* SGD with momentum and weight decay (Sutskever et al., 2013, in the form the usual frameworks use):
 * g += decay * p;  v = momentum * v + g;  p -= rate * (nesterov ? g + momentum * v : v). */
int NAME(sgd_step)(REAL *p, const REAL *g, REAL *v, long n, double rate, double momentum, double decay, int nesterov) {
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
