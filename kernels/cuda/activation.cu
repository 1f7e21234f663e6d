// Activations and their gradients, and dropout.
#define SQRT_2_PI ACC(0.79788456080286536)
#define CUBIC ACC(0.044715)

__device__ inline ACC sigmoid(ACC x) {
    return ACC(1) / (ACC(1) + exp(-x));
}
__device__ inline ACC normal_share(ACC x) {
    return ACC(0.5) * (ACC(1) + erf(x * ACC(0.70710678118654752)));
}

__device__ inline ACC activate(ACC v, int kind) {
    switch (kind) {
    case ACT_RELU: return v < ACC(0) ? ACC(0) : v;
    case ACT_GELU: return v * normal_share(v);
    case ACT_GELU_TANH: return ACC(0.5) * v * (ACC(1) + tanh(SQRT_2_PI * (v + CUBIC * v * v * v)));
    case ACT_SILU: return v * sigmoid(v);
    case ACT_TANH: return tanh(v);
    default: return sigmoid(v);
    }
}

// The slope at input v with output w.
__device__ inline ACC slope(ACC v, ACC w, int kind) {
    if (kind == ACT_RELU) return w > ACC(0) ? ACC(1) : ACC(0);
    if (kind == ACT_GELU)
        return normal_share(v) + v * ACC(0.39894228040143268) * exp(ACC(-0.5) * v * v);
    if (kind == ACT_GELU_TANH) {
        const ACC t = tanh(SQRT_2_PI * (v + CUBIC * v * v * v));
        return ACC(0.5) * (ACC(1) + t) +
               ACC(0.5) * v * (ACC(1) - t * t) * SQRT_2_PI * (ACC(1) + ACC(3) * CUBIC * v * v);
    }
    if (kind == ACT_SILU) {
        const ACC s = sigmoid(v);
        return s * (ACC(1) + v * (ACC(1) - s));
    }
    return kind == ACT_TANH ? ACC(1) - w * w : w * (ACC(1) - w);
}

extern "C" __global__ void act_forward(const REAL *x, REAL *y, i64 n, int kind) {
    map(x, y, n, [=](i64, ACC v) { return activate(v, kind); });
}

extern "C" __global__ void act_backward(const REAL *dy, const REAL *x, const REAL *y, REAL *dx,
                                        i64 n, int kind) {
    if (kind == ACT_RELU || kind > ACT_SILU) { // the output is enough
        map2(dy, y, dx, n, [=](i64, ACC d, ACC w) { return d * slope(ACC(0), w, kind); });
        return;
    }
    map2(dy, x, dx, n, [=](i64, ACC d, ACC v) { return d * slope(v, ACC(0), kind); });
}

// Philox4x32-10 (Salmon et al., 2011): counter (i / 4, step, stream + part), key seed; element i
// takes word i % 4. drawn: seed, step, part, in device memory, so that a captured graph draws other
// numbers in every step.
extern "C" __global__ void dropout(const REAL *x, REAL *y, i64 n, double keep, const i64 *drawn,
                                   i64 stream) {
    const i64 seed = drawn[0], step = drawn[1], line = stream + drawn[2];
    const ACC scale = ACC(1 / keep);
    const unsigned limit = keep >= 1 ? 0xffffffffu : (unsigned)(keep * 4294967296.0);
    FOR_EACH(group, (n + 3) / 4) {
        unsigned c[4] = {(unsigned)group, (unsigned)(group >> 32), (unsigned)step, (unsigned)line};
        philox(c, seed);
        for (int word = 0; word < 4; word++) {
            const i64 i = group * 4 + word;
            if (i < n) y[i] = c[word] < limit ? x[i] * scale : ACC(0);
        }
    }
}
