// Optimizer steps, one fused pass over the flat buffers.

extern "C" __global__ void sgd_step(REAL *p, const REAL *g, REAL *v, i64 n, REAL lr, REAL momentum, REAL decay, int nesterov) {
    FOR_EACH(i, n) {
        const REAL grad = g[i] + decay * p[i];
        const REAL speed = momentum * v[i] + grad;
        v[i] = speed;
        p[i] -= lr * (nesterov ? grad + momentum * speed : speed);
    }
}

// Adam; decoupled: AdamW. fix1, fix2: 1 - beta^step.
extern "C" __global__ void adam_step(REAL *p, const REAL *g, REAL *m, REAL *v, i64 n, REAL lr, REAL beta1, REAL beta2, REAL eps, REAL decay,
                                     REAL fix1, REAL fix2, int decoupled) {
    const REAL shrink = decoupled ? REAL(1) - lr * decay : REAL(1), size = lr / fix1, root = REAL(1) / sqrt(fix2);
    FOR_EACH(i, n) {
        const REAL grad = g[i] + (decoupled ? REAL(0) : decay) * p[i];
        const REAL first = beta1 * m[i] + (REAL(1) - beta1) * grad, second = beta2 * v[i] + (REAL(1) - beta2) * grad * grad;
        m[i] = first;
        v[i] = second;
        p[i] = shrink * p[i] - size * first / (sqrt(second) * root + eps);
    }
}

// u = Adam's step with decoupled decay, before the learning rate (for LAMB).
extern "C" __global__ void adam_direction(const REAL *p, const REAL *g, REAL *m, REAL *v, REAL *u, i64 n, REAL beta1, REAL beta2, REAL eps,
                                          REAL decay, REAL fix1, REAL fix2) {
    const REAL root = REAL(1) / sqrt(fix2);
    FOR_EACH(i, n) {
        const REAL first = beta1 * m[i] + (REAL(1) - beta1) * g[i], second = beta2 * v[i] + (REAL(1) - beta2) * g[i] * g[i];
        m[i] = first;
        v[i] = second;
        u[i] = first / fix1 / (sqrt(second) * root + eps) + decay * p[i];
    }
}

// One block a slot: sums of squares of x[starts[s], stops[s]).
extern "C" __global__ void slot_squares(const REAL *x, const i64 *starts, const i64 *stops, double *squares, i64 slots) {
    __shared__ double part[BLOCK];
    for (i64 s = blockIdx.x; s < slots; s += gridDim.x) {
        double sum = 0;
        for (i64 i = starts[s] + threadIdx.x; i < stops[s]; i += BLOCK) sum += (double)x[i] * (double)x[i];
        part[threadIdx.x] = sum;
        __syncthreads();
        for (int half = BLOCK / 2; half > 0; half /= 2) {
            if ((int)threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
            __syncthreads();
        }
        if (threadIdx.x == 0) squares[s] = part[0];
        __syncthreads();
    }
}

// One block a slot: x[starts[s], stops[s]) *= factors[s].
extern "C" __global__ void slot_scale(REAL *x, const i64 *starts, const i64 *stops, const double *factors, i64 slots) {
    for (i64 s = blockIdx.x; s < slots; s += gridDim.x)
        for (i64 i = starts[s] + threadIdx.x; i < stops[s]; i += BLOCK) x[i] *= REAL(factors[s]);
}
