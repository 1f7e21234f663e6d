// Activations and their gradients, and dropout. kind: 0 ReLU, 1 GELU (erf), 2 GELU (tanh), 3 SiLU, 4 tanh, 5 sigmoid.
#define SQRT_2_PI REAL(0.79788456080286536)
#define CUBIC REAL(0.044715)

__device__ inline REAL sigmoid(REAL x) { return REAL(1) / (REAL(1) + exp(-x)); }
__device__ inline REAL normal_share(REAL x) { return REAL(0.5) * (REAL(1) + erf(x * REAL(0.70710678118654752))); }

extern "C" __global__ void act_forward(const REAL *x, REAL *y, i64 n, int kind) {
    FOR_EACH(i, n) {
        const REAL v = x[i];
        switch (kind) {
        case 0: y[i] = v < REAL(0) ? REAL(0) : v; break;
        case 1: y[i] = v * normal_share(v); break;
        case 2: y[i] = REAL(0.5) * v * (REAL(1) + tanh(SQRT_2_PI * (v + CUBIC * v * v * v))); break;
        case 3: y[i] = v * sigmoid(v); break;
        case 4: y[i] = tanh(v); break;
        default: y[i] = sigmoid(v);
        }
    }
}

extern "C" __global__ void act_backward(const REAL *dy, const REAL *x, const REAL *y, REAL *dx, i64 n, int kind) {
    FOR_EACH(i, n) {
        const REAL v = x[i], w = y[i];
        REAL slope;
        if (kind == 0) {
            slope = w > REAL(0) ? REAL(1) : REAL(0);
        } else if (kind == 1) {
            slope = normal_share(v) + v * REAL(0.39894228040143268) * exp(REAL(-0.5) * v * v);
        } else if (kind == 2) {
            const REAL t = tanh(SQRT_2_PI * (v + CUBIC * v * v * v));
            slope = REAL(0.5) * (REAL(1) + t) + REAL(0.5) * v * (REAL(1) - t * t) * SQRT_2_PI * (REAL(1) + REAL(3) * CUBIC * v * v);
        } else if (kind == 3) {
            const REAL s = sigmoid(v);
            slope = s * (REAL(1) + v * (REAL(1) - s));
        } else {
            slope = kind == 4 ? REAL(1) - w * w : w * (REAL(1) - w);
        }
        dx[i] = dy[i] * slope;
    }
}

// Philox4x32-10 (Salmon et al., 2011): counter (i / 4, step, stream), key seed; element i takes word i % 4.
extern "C" __global__ void dropout(const REAL *x, REAL *y, i64 n, double keep, i64 seed, i64 step, i64 stream) {
    const REAL scale = REAL(1 / keep);
    const unsigned limit = keep >= 1 ? 0xffffffffu : (unsigned)(keep * 4294967296.0);
    FOR_EACH(i, n) {
        const i64 group = i / 4;
        unsigned c0 = (unsigned)group, c1 = (unsigned)(group >> 32), c2 = (unsigned)step, c3 = (unsigned)stream;
        unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
        for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
            const unsigned long long a = 0xD2511F53ull * c0, b = 0xCD9E8D57ull * c2;
            const unsigned n0 = (unsigned)(b >> 32) ^ c1 ^ k0, n2 = (unsigned)(a >> 32) ^ c3 ^ k1;
            c0 = n0, c1 = (unsigned)b, c2 = n2, c3 = (unsigned)a;
        }
        const int word = (int)(i % 4);
        const unsigned drawn = word == 0 ? c0 : word == 1 ? c1 : word == 2 ? c2 : c3;
        y[i] = drawn < limit ? x[i] * scale : REAL(0);
    }
}
