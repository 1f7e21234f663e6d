// Optimizer steps, one fused pass over the flat buffers.

extern "C" __global__ void sgd_step(REAL *p, const REAL *g, REAL *v, i64 n, REAL lr, REAL momentum, REAL decay, int nesterov) {
    FOR_EACH(i, n) {
        const REAL grad = g[i] + decay * p[i];
        const REAL speed = momentum * v[i] + grad;
        v[i] = speed;
        p[i] -= lr * (nesterov ? grad + momentum * speed : speed);
    }
}
