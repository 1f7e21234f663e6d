// Cells of recurrent networks, after the matrix products. Gates stand side by side: LSTM i, f, g, o; GRU r, z, n.
__device__ inline REAL sigmoid(REAL x) { return REAL(1) / (REAL(1) + exp(-x)); }

extern "C" __global__ void lstm_forward(REAL *gates, const REAL *c_before, REAL *c, REAL *h, i64 rows, i64 hidden) {
    FOR_EACH(at, rows * hidden) {
        REAL *i = gates + at / hidden * 4 * hidden + at % hidden, *f = i + hidden, *g = f + hidden, *o = g + hidden;
        *i = sigmoid(*i), *f = sigmoid(*f), *g = tanh(*g), *o = sigmoid(*o);
        const REAL state = *f * c_before[at] + *i * *g;
        c[at] = state;
        h[at] = *o * tanh(state);
    }
}

extern "C" __global__ void lstm_backward(REAL *gates, const REAL *c_before, const REAL *c, const REAL *dh, REAL *dc, i64 rows, i64 hidden) {
    FOR_EACH(at, rows * hidden) {
        REAL *i = gates + at / hidden * 4 * hidden + at % hidden, *f = i + hidden, *g = f + hidden, *o = g + hidden;
        const REAL t = tanh(c[at]), d = dc[at] + dh[at] * *o * (REAL(1) - t * t), in = *i, forget = *f, fresh = *g;
        *o = dh[at] * t * *o * (REAL(1) - *o);
        *i = d * fresh * in * (REAL(1) - in);
        *g = d * in * (REAL(1) - fresh * fresh);
        *f = d * c_before[at] * forget * (REAL(1) - forget);
        dc[at] = d * forget;
    }
}

extern "C" __global__ void gru_forward(REAL *x_gates, const REAL *h_gates, const REAL *h_before, REAL *h, i64 rows, i64 hidden) {
    FOR_EACH(at, rows * hidden) {
        REAL *a = x_gates + at / hidden * 3 * hidden + at % hidden;
        const REAL *b = h_gates + at / hidden * 3 * hidden + at % hidden;
        const REAL reset = sigmoid(a[0] + b[0]), update = sigmoid(a[hidden] + b[hidden]);
        const REAL fresh = tanh(a[2 * hidden] + reset * b[2 * hidden]);
        a[0] = reset, a[hidden] = update, a[2 * hidden] = fresh;
        h[at] = (REAL(1) - update) * fresh + update * h_before[at];
    }
}

extern "C" __global__ void gru_backward(REAL *x_gates, REAL *h_gates, const REAL *h_before, REAL *dh, i64 rows, i64 hidden) {
    FOR_EACH(at, rows * hidden) {
        REAL *a = x_gates + at / hidden * 3 * hidden + at % hidden, *b = h_gates + at / hidden * 3 * hidden + at % hidden;
        const REAL reset = a[0], update = a[hidden], fresh = a[2 * hidden], d = dh[at];
        const REAL dn = d * (REAL(1) - update) * (REAL(1) - fresh * fresh), dr = dn * b[2 * hidden] * reset * (REAL(1) - reset);
        const REAL dz = d * (h_before[at] - fresh) * update * (REAL(1) - update);
        a[0] = b[0] = dr;
        a[hidden] = b[hidden] = dz;
        a[2 * hidden] = dn;
        b[2 * hidden] = dn * reset;
        dh[at] = d * update;
    }
}
