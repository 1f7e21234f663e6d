// Max pooling, NHWC, windows of k x k with stride k; rows and columns that fill no window are
// dropped.

extern "C" __global__ void maxpool2d_forward(const REAL *x, REAL *y, const pool_geometry g) {
    FOR_EACH(i, g.n * g.oh * g.ow * g.c) {
        i64 rest = i;
        const i64 channel = rest % g.c;
        rest /= g.c;
        const i64 ox = rest % g.ow;
        rest /= g.ow;
        const i64 oy = rest % g.oh;
        const i64 image = rest / g.oh;
        const REAL *window = x + ((image * g.h + oy * g.k) * g.w + ox * g.k) * g.c + channel;
        ACC best = window[0];
        for (i64 a = 0; a < g.k; a++)
            for (i64 b = 0; b < g.k; b++) {
                const ACC v = window[(a * g.w + b) * g.c];
                if (v > best || v != v) best = v; // a NaN stays a NaN
            }
        y[i] = best;
    }
}

// One thread an input element: dy if it is the first maximum of its window, else 0; with relu also
// 0 where x <= 0.
extern "C" __global__ void maxpool2d_backward(const REAL *dy, const REAL *x, const REAL *y,
                                              REAL *dx, const pool_geometry g, int relu) {
    FOR_EACH(i, g.n * g.h * g.w * g.c) {
        i64 rest = i;
        const i64 channel = rest % g.c;
        rest /= g.c;
        const i64 col = rest % g.w;
        rest /= g.w;
        const i64 row = rest % g.h;
        const i64 image = rest / g.h;
        const i64 oy = row / g.k, ox = col / g.k;
        ACC grad = ACC(0);
        if (oy < g.oh && ox < g.ow) {
            const i64 o = ((image * g.oh + oy) * g.ow + ox) * g.c + channel;
            const ACC top = y[o];
            const REAL *window = x + ((image * g.h + oy * g.k) * g.w + ox * g.k) * g.c + channel;
            const i64 place = (row % g.k) * g.k + col % g.k;
            bool first = x[i] == top && (!relu || top > ACC(0));
            for (i64 p = 0; first && p < place; p++)
                first = window[(p / g.k * g.w + p % g.k) * g.c] != top;
            if (first) grad = dy[o];
        }
        dx[i] = grad;
    }
}
