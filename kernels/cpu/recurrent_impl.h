/* Cells of recurrent networks, after the matrix products. Gates stand side by side: LSTM i, f, g,
 * o; GRU r, z, n. */

/* LSTM (Hochreiter and Schmidhuber, 1997): gates (rows, 4 hidden) from pre-activations to
 * activations, in place; c, h (rows, hidden). */
int NAME(lstm_forward)(REAL *gates, const REAL *c_before, REAL *c, REAL *h, long rows,
                       long hidden) {
    PARALLEL_FOR(rows * hidden * 32)
    for (long r = 0; r < rows; r++) {
        REAL *i = gates + 4 * r * hidden, *f = i + hidden, *g = f + hidden, *o = g + hidden;
        for (long j = 0; j < hidden; j++) {
            i[j] = NAME(sigmoid)(i[j]);
            f[j] = NAME(sigmoid)(f[j]);
            g[j] = NAME(fast_tanh)(g[j]);
            o[j] = NAME(sigmoid)(o[j]);
            const REAL state = f[j] * c_before[r * hidden + j] + i[j] * g[j];
            c[r * hidden + j] = state;
            h[r * hidden + j] = o[j] * NAME(fast_tanh)(state);
        }
    }
    return 0;
}

/* gates hold activations and become gradients of the pre-activations; dc: gradient of c, becomes
 * that of c_before. */
int NAME(lstm_backward)(REAL *gates, const REAL *c_before, const REAL *c, const REAL *dh, REAL *dc,
                        long rows, long hidden) {
    PARALLEL_FOR(rows * hidden * 32)
    for (long r = 0; r < rows; r++) {
        REAL *i = gates + 4 * r * hidden, *f = i + hidden, *g = f + hidden, *o = g + hidden;
        for (long j = 0; j < hidden; j++) {
            const long at = r * hidden + j;
            const REAL t = NAME(fast_tanh)(c[at]), d = dc[at] + dh[at] * o[j] * (1 - t * t),
                       in = i[j], forget = f[j], new = g[j];
            o[j] = dh[at] * t * o[j] * (1 - o[j]);
            i[j] = d * new * in * (1 - in);
            g[j] = d * in * (1 - new *new);
            f[j] = d * c_before[at] * forget * (1 - forget);
            dc[at] = d * forget;
        }
    }
    return 0;
}

/* GRU (Cho et al., 2014), with the reset after the product: x_gates, h_gates (rows, 3 hidden)
 * pre-activations from input and state; x_gates become activations. n = tanh(x_n + r * h_n); h = (1
 * - z) n + z h_before. */
int NAME(gru_forward)(REAL *x_gates, const REAL *h_gates, const REAL *h_before, REAL *h, long rows,
                      long hidden) {
    PARALLEL_FOR(rows * hidden * 32)
    for (long r = 0; r < rows; r++) {
        REAL *a = x_gates + 3 * r * hidden;
        const REAL *b = h_gates + 3 * r * hidden;
        for (long j = 0; j < hidden; j++) {
            const REAL reset = NAME(sigmoid)(a[j] + b[j]),
                       update = NAME(sigmoid)(a[hidden + j] + b[hidden + j]);
            const REAL new = NAME(fast_tanh)(a[2 * hidden + j] + reset * b[2 * hidden + j]);
            a[j] = reset;
            a[hidden + j] = update;
            a[2 * hidden + j] = new;
            h[r * hidden + j] = (1 - update) * new + update *h_before[r * hidden + j];
        }
    }
    return 0;
}

/* x_gates (activations) and h_gates become gradients of the pre-activations; dh becomes the part of
 * h_before's that skips the gates. */
int NAME(gru_backward)(REAL *x_gates, REAL *h_gates, const REAL *h_before, REAL *dh, long rows,
                       long hidden) {
    PARALLEL_FOR(rows * hidden * 32)
    for (long r = 0; r < rows; r++) {
        REAL *a = x_gates + 3 * r * hidden, *b = h_gates + 3 * r * hidden;
        for (long j = 0; j < hidden; j++) {
            const long at = r * hidden + j;
            const REAL reset = a[j], update = a[hidden + j], new = a[2 * hidden + j], d = dh[at];
            const REAL dn = d * (1 - update) * (1 - new *new),
                       dr = dn * b[2 * hidden + j] * reset * (1 - reset);
            const REAL dz = d * (h_before[at] - new) * update * (1 - update);
            a[j] = b[j] = dr;
            a[hidden + j] = b[hidden + j] = dz;
            a[2 * hidden + j] = dn;
            b[2 * hidden + j] = dn * reset;
            dh[at] = d * update;
        }
    }
    return 0;
}
