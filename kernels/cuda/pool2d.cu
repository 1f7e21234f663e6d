// Max pooling, NHWC, windows of k x k with stride k; rows and columns that fill no window are dropped.

extern "C" __global__ void maxpool2d_forward(const REAL *x, REAL *y, i64 total, i64 height, i64 width, i64 channels, i64 k) {
    const i64 out_height = height / k, out_width = width / k;
    FOR_EACH(i, total) {
        i64 rest = i;
        const i64 c = rest % channels; rest /= channels;
        const i64 ox = rest % out_width; rest /= out_width;
        const i64 oy = rest % out_height;
        const i64 n = rest / out_height;
        const REAL *window = x + ((n * height + oy * k) * width + ox * k) * channels + c;
        ACC best = window[0];
        for (i64 a = 0; a < k; a++)
            for (i64 b = 0; b < k; b++) {
                const ACC v = window[(a * width + b) * channels];
                if (v > best || v != v) best = v;  // a NaN stays a NaN
            }
        y[i] = best;
    }
}

// One thread an input element: dy if it is the first maximum of its window, else 0; with relu also 0 where x <= 0.
extern "C" __global__ void maxpool2d_backward(const REAL *dy, const REAL *x, const REAL *y, REAL *dx, i64 total, i64 height, i64 width,
                                              i64 channels, i64 k, int relu) {
    const i64 out_height = height / k, out_width = width / k;
    FOR_EACH(i, total) {
        i64 rest = i;
        const i64 c = rest % channels; rest /= channels;
        const i64 col = rest % width; rest /= width;
        const i64 row = rest % height;
        const i64 n = rest / height;
        const i64 oy = row / k, ox = col / k;
        ACC grad = ACC(0);
        if (oy < out_height && ox < out_width) {
            const i64 o = ((n * out_height + oy) * out_width + ox) * channels + c;
            const ACC top = y[o];
            const REAL *window = x + ((n * height + oy * k) * width + ox * k) * channels + c;
            const i64 place = (row % k) * k + col % k;
            bool first = x[i] == top && (!relu || top > ACC(0));
            for (i64 p = 0; first && p < place; p++) first = window[(p / k * width + p % k) * channels] != top;
            if (first) grad = dy[o];
        }
        dx[i] = grad;
    }
}
