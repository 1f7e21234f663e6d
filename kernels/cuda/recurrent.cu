// Cells of recurrent networks, after the matrix products. Gates stand side by side: LSTM i, f, g,
// o; GRU r, z, n.
__device__ inline ACC sigmoid(ACC x) {
    return ACC(1) / (ACC(1) + exp(-x));
}

extern "C" __global__ void lstm_forward(REAL *gates, const ACC *c_before, ACC *c, REAL *h, i64 rows,
                                        i64 hidden) {
    FOR_EACH(at, rows * hidden) {
        REAL *i = gates + at / hidden * 4 * hidden + at % hidden, *f = i + hidden, *g = f + hidden,
             *o = g + hidden;
        *i = sigmoid(*i);
        *f = sigmoid(*f);
        *g = tanh(*g);
        *o = sigmoid(*o);
        const ACC state = *f * c_before[at] + *i * *g;
        c[at] = state;
        h[at] = *o * tanh(state);
    }
}

extern "C" __global__ void lstm_backward(REAL *gates, const ACC *c_before, const ACC *c,
                                         const REAL *dh, ACC *dc, i64 rows, i64 hidden) {
    FOR_EACH(at, rows * hidden) {
        REAL *i = gates + at / hidden * 4 * hidden + at % hidden, *f = i + hidden, *g = f + hidden,
             *o = g + hidden;
        const ACC t = tanh(c[at]), d = dc[at] + dh[at] * *o * (ACC(1) - t * t), in = *i,
                  forget = *f, fresh = *g;
        *o = dh[at] * t * *o * (ACC(1) - *o);
        *i = d * fresh * in * (ACC(1) - in);
        *g = d * in * (ACC(1) - fresh * fresh);
        *f = d * c_before[at] * forget * (ACC(1) - forget);
        dc[at] = d * forget;
    }
}

extern "C" __global__ void gru_forward(REAL *x_gates, const REAL *h_gates, const REAL *h_before,
                                       REAL *h, i64 rows, i64 hidden) {
    FOR_EACH(at, rows * hidden) {
        REAL *a = x_gates + at / hidden * 3 * hidden + at % hidden;
        const REAL *b = h_gates + at / hidden * 3 * hidden + at % hidden;
        const ACC reset = sigmoid(a[0] + b[0]), update = sigmoid(a[hidden] + b[hidden]);
        const ACC fresh = tanh(a[2 * hidden] + reset * b[2 * hidden]);
        a[0] = reset;
        a[hidden] = update;
        a[2 * hidden] = fresh;
        h[at] = (ACC(1) - update) * fresh + update * h_before[at];
    }
}

extern "C" __global__ void gru_backward(REAL *x_gates, REAL *h_gates, const REAL *h_before,
                                        REAL *dh, i64 rows, i64 hidden) {
    FOR_EACH(at, rows * hidden) {
        REAL *a = x_gates + at / hidden * 3 * hidden + at % hidden,
             *b = h_gates + at / hidden * 3 * hidden + at % hidden;
        const ACC reset = a[0], update = a[hidden], fresh = a[2 * hidden], d = dh[at];
        const ACC dn = d * (ACC(1) - update) * (ACC(1) - fresh * fresh),
                  dr = dn * b[2 * hidden] * reset * (ACC(1) - reset);
        const ACC dz = d * (h_before[at] - fresh) * update * (ACC(1) - update);
        a[0] = b[0] = dr;
        a[hidden] = b[hidden] = dz;
        a[2 * hidden] = dn;
        b[2 * hidden] = dn * reset;
        dh[at] = d * update;
    }
}
