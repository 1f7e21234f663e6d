// Optimizer steps, one fused pass over the flat buffers.

#define FOUR 4
struct alignas(16) Four {
    ACC v[FOUR];
};

// Calls f(p, g, a, b) on every element of the buffers, four at a time where all are aligned; p, a
// and b are changed in place. b: null for rules with one state.
template <class F>
__device__ inline void update(i64 n, F f, ACC *p, const ACC *g, ACC *a, ACC *b = nullptr) {
    const i64 fours = packable(p, g, a, b) ? n / FOUR : 0;
    FOR_EACH(i, fours) {
        Four pp = ((Four *)p)[i], aa = ((Four *)a)[i], bb = {};
        const Four gg = ((const Four *)g)[i];
        if (b) bb = ((Four *)b)[i];
        for (int k = 0; k < FOUR; k++) f(pp.v[k], gg.v[k], aa.v[k], bb.v[k]);
        ((Four *)p)[i] = pp;
        ((Four *)a)[i] = aa;
        if (b) ((Four *)b)[i] = bb;
    }
    FOR_EACH(i, n - fours * FOUR) {
        const i64 at = fours * FOUR + i;
        ACC none = 0;
        f(p[at], g[at], a[at], b ? b[at] : none);
    }
}

extern "C" __global__ void sgd_step(ACC *p, const ACC *g, ACC *v, i64 n, ACC lr, ACC momentum,
                                    ACC decay, int nesterov) {
    const auto step = [=](ACC &value, ACC grad, ACC &velocity, ACC &) {
        const ACC full = grad + decay * value;
        velocity = momentum * velocity + full;
        value -= lr * (nesterov ? full + momentum * velocity : velocity);
    };
    update(n, step, p, g, v);
}

// Adam; decoupled: AdamW. fix1, fix2: 1 - beta^step.
extern "C" __global__ void adam_step(ACC *p, const ACC *g, ACC *m, ACC *v, i64 n, ACC lr, ACC beta1,
                                     ACC beta2, ACC eps, ACC decay, ACC fix1, ACC fix2,
                                     int decoupled) {
    const ACC shrink = decoupled ? ACC(1) - lr * decay : ACC(1), size = lr / fix1,
              root = ACC(1) / sqrt(fix2);
    const auto step = [=](ACC &value, ACC given, ACC &first, ACC &second) {
        const ACC grad = given + (decoupled ? ACC(0) : decay) * value;
        first = beta1 * first + (ACC(1) - beta1) * grad;
        second = beta2 * second + (ACC(1) - beta2) * grad * grad;
        value = shrink * value - size * first / (sqrt(second) * root + eps);
    };
    update(n, step, p, g, m, v);
}

// u = Adam's step with decoupled decay, before the learning rate (for LAMB).
extern "C" __global__ void adam_direction(const ACC *p, const ACC *g, ACC *m, ACC *v, ACC *u, i64 n,
                                          ACC beta1, ACC beta2, ACC eps, ACC decay, ACC fix1,
                                          ACC fix2) {
    const ACC root = ACC(1) / sqrt(fix2);
    FOR_EACH(i, n) {
        const ACC first = beta1 * m[i] + (ACC(1) - beta1) * g[i],
                  second = beta2 * v[i] + (ACC(1) - beta2) * g[i] * g[i];
        m[i] = first;
        v[i] = second;
        u[i] = first / fix1 / (sqrt(second) * root + eps) + decay * p[i];
    }
}

// One block a slot: sums of squares of x[starts[s], stops[s]).
extern "C" __global__ void slot_squares(const ACC *x, const i64 *starts, const i64 *stops,
                                        double *squares, i64 slots) {
    __shared__ double part[BLOCK];
    for (i64 s = blockIdx.x; s < slots; s += gridDim.x) {
        double sum = 0;
        for (i64 i = starts[s] + threadIdx.x; i < stops[s]; i += BLOCK)
            sum += (double)x[i] * (double)x[i];
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
extern "C" __global__ void slot_scale(ACC *x, const i64 *starts, const i64 *stops,
                                      const double *factors, i64 slots) {
    for (i64 s = blockIdx.x; s < slots; s += gridDim.x)
        for (i64 i = starts[s] + threadIdx.x; i < stops[s]; i += BLOCK) x[i] *= ACC(factors[s]);
}

// p -= lr * g where there is a gradient; elements without one are not written.
extern "C" __global__ void sparse_sgd(ACC *p, const ACC *g, i64 n, ACC lr) {
    FOR_EACH(i, n)
        if (g[i] != ACC(0)) p[i] -= lr * g[i];
}
