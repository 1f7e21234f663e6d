// Pooling with windows that may overlap and hang over the edge (padding counts neither as a maximum nor in an average). NHWC.
__device__ inline i64 low(i64 o, i64 stride, i64 pad) { return o * stride - pad < 0 ? 0 : o * stride - pad; }
__device__ inline i64 high(i64 o, i64 stride, i64 pad, i64 k, i64 size) { return o * stride - pad + k > size ? size : o * stride - pad + k; }
// The first and last outputs whose windows hold input position p.
__device__ inline i64 first_of(i64 p, i64 stride, i64 pad, i64 k) { return p + pad - k + 1 <= 0 ? 0 : (p + pad - k + stride) / stride; }
__device__ inline i64 last_of(i64 p, i64 stride, i64 pad, i64 count) { const i64 o = (p + pad) / stride; return o < count ? o : count - 1; }

extern "C" __global__ void maxpool_forward(const REAL *x, REAL *y, i64 *place, i64 n, i64 h, i64 w, i64 channels, i64 k, i64 stride, i64 pad,
                                           i64 oh, i64 ow) {
    FOR_EACH(i, n * oh * ow * channels) {
        const i64 c = i % channels, ox = i / channels % ow, oy = i / channels / ow % oh, image = i / channels / ow / oh;
        const i64 r0 = low(oy, stride, pad), q0 = low(ox, stride, pad);
        ACC top = x[((image * h + r0) * w + q0) * channels + c];
        i64 at = r0 * w + q0;
        for (i64 r = r0; r < high(oy, stride, pad, k, h); r++)
            for (i64 q = q0; q < high(ox, stride, pad, k, w); q++) {
                const ACC v = x[((image * h + r) * w + q) * channels + c];
                if (v > top || (v != v && top == top)) top = v, at = r * w + q;
            }
        y[i] = top;
        place[i] = at;
    }
}

extern "C" __global__ void maxpool_backward(const REAL *dy, const i64 *place, REAL *dx, i64 n, i64 h, i64 w, i64 channels, i64 k, i64 stride,
                                            i64 pad, i64 oh, i64 ow) {
    FOR_EACH(i, n * h * w * channels) {
        const i64 c = i % channels, q = i / channels % w, r = i / channels / w % h, image = i / channels / w / h;
        ACC sum = ACC(0);
        for (i64 oy = first_of(r, stride, pad, k); oy <= last_of(r, stride, pad, oh); oy++)
            for (i64 ox = first_of(q, stride, pad, k); ox <= last_of(q, stride, pad, ow); ox++) {
                const i64 o = ((image * oh + oy) * ow + ox) * channels + c;
                if (place[o] == r * w + q) sum += dy[o];
            }
        dx[i] = sum;
    }
}

extern "C" __global__ void avgpool_forward(const REAL *x, REAL *y, i64 n, i64 h, i64 w, i64 channels, i64 k, i64 stride, i64 pad, i64 oh,
                                           i64 ow) {
    FOR_EACH(i, n * oh * ow * channels) {
        const i64 c = i % channels, ox = i / channels % ow, oy = i / channels / ow % oh, image = i / channels / ow / oh;
        const i64 top = low(oy, stride, pad), bottom = high(oy, stride, pad, k, h), left = low(ox, stride, pad), right = high(ox, stride, pad, k, w);
        ACC sum = ACC(0);
        for (i64 r = top; r < bottom; r++)
            for (i64 q = left; q < right; q++) sum += x[((image * h + r) * w + q) * channels + c];
        y[i] = sum / ACC((bottom - top) * (right - left));
    }
}

extern "C" __global__ void avgpool_backward(const REAL *dy, REAL *dx, i64 n, i64 h, i64 w, i64 channels, i64 k, i64 stride, i64 pad, i64 oh,
                                            i64 ow) {
    FOR_EACH(i, n * h * w * channels) {
        const i64 c = i % channels, q = i / channels % w, r = i / channels / w % h, image = i / channels / w / h;
        ACC sum = ACC(0);
        for (i64 oy = first_of(r, stride, pad, k); oy <= last_of(r, stride, pad, oh); oy++)
            for (i64 ox = first_of(q, stride, pad, k); ox <= last_of(q, stride, pad, ow); ox++) {
                const i64 down = high(oy, stride, pad, k, h) - low(oy, stride, pad), across = high(ox, stride, pad, k, w) - low(ox, stride, pad);
                sum += dy[((image * oh + oy) * ow + ox) * channels + c] / ACC(down * across);
            }
        dx[i] = sum;
    }
}
