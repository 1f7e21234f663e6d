// Pooling with windows that may overlap and hang over the edge (padding counts neither as a maximum
// nor in an average). NHWC.
__device__ inline i64 low(i64 o, i64 stride, i64 pad) {
    return o * stride - pad < 0 ? 0 : o * stride - pad;
}
__device__ inline i64 high(i64 o, i64 stride, i64 pad, i64 k, i64 size) {
    return o * stride - pad + k > size ? size : o * stride - pad + k;
}
// The first and last outputs whose windows hold input position p.
__device__ inline i64 first_of(i64 p, i64 stride, i64 pad, i64 k) {
    return p + pad - k + 1 <= 0 ? 0 : (p + pad - k + stride) / stride;
}
__device__ inline i64 last_of(i64 p, i64 stride, i64 pad, i64 count) {
    const i64 o = (p + pad) / stride;
    return o < count ? o : count - 1;
}

extern "C" __global__ void maxpool_forward(const REAL *x, REAL *y, i64 *place,
                                           const pool_geometry g) {
    FOR_EACH(i, g.n * g.oh * g.ow * g.c) {
        const i64 channel = i % g.c, ox = i / g.c % g.ow, oy = i / g.c / g.ow % g.oh,
                  image = i / g.c / g.ow / g.oh;
        const i64 r0 = low(oy, g.stride, g.pad), q0 = low(ox, g.stride, g.pad);
        ACC top = x[((image * g.h + r0) * g.w + q0) * g.c + channel];
        i64 at = r0 * g.w + q0;
        for (i64 r = r0; r < high(oy, g.stride, g.pad, g.k, g.h); r++)
            for (i64 q = q0; q < high(ox, g.stride, g.pad, g.k, g.w); q++) {
                const ACC v = x[((image * g.h + r) * g.w + q) * g.c + channel];
                if (v > top || (v != v && top == top)) {
                    top = v;
                    at = r * g.w + q;
                }
            }
        y[i] = top;
        place[i] = at;
    }
}

extern "C" __global__ void maxpool_backward(const REAL *dy, const i64 *place, REAL *dx,
                                            const pool_geometry g) {
    FOR_EACH(i, g.n * g.h * g.w * g.c) {
        const i64 channel = i % g.c, q = i / g.c % g.w, r = i / g.c / g.w % g.h,
                  image = i / g.c / g.w / g.h;
        ACC sum = ACC(0);
        for (i64 oy = first_of(r, g.stride, g.pad, g.k); oy <= last_of(r, g.stride, g.pad, g.oh);
             oy++)
            for (i64 ox = first_of(q, g.stride, g.pad, g.k);
                 ox <= last_of(q, g.stride, g.pad, g.ow); ox++) {
                const i64 o = ((image * g.oh + oy) * g.ow + ox) * g.c + channel;
                if (place[o] == r * g.w + q) sum += dy[o];
            }
        dx[i] = sum;
    }
}

extern "C" __global__ void avgpool_forward(const REAL *x, REAL *y, const pool_geometry g) {
    FOR_EACH(i, g.n * g.oh * g.ow * g.c) {
        const i64 channel = i % g.c, ox = i / g.c % g.ow, oy = i / g.c / g.ow % g.oh,
                  image = i / g.c / g.ow / g.oh;
        const i64 top = low(oy, g.stride, g.pad), bottom = high(oy, g.stride, g.pad, g.k, g.h),
                  left = low(ox, g.stride, g.pad), right = high(ox, g.stride, g.pad, g.k, g.w);
        ACC sum = ACC(0);
        for (i64 r = top; r < bottom; r++)
            for (i64 q = left; q < right; q++)
                sum += x[((image * g.h + r) * g.w + q) * g.c + channel];
        y[i] = sum / ACC((bottom - top) * (right - left));
    }
}

extern "C" __global__ void avgpool_backward(const REAL *dy, REAL *dx, const pool_geometry g) {
    FOR_EACH(i, g.n * g.h * g.w * g.c) {
        const i64 channel = i % g.c, q = i / g.c % g.w, r = i / g.c / g.w % g.h,
                  image = i / g.c / g.w / g.h;
        ACC sum = ACC(0);
        for (i64 oy = first_of(r, g.stride, g.pad, g.k); oy <= last_of(r, g.stride, g.pad, g.oh);
             oy++)
            for (i64 ox = first_of(q, g.stride, g.pad, g.k);
                 ox <= last_of(q, g.stride, g.pad, g.ow); ox++) {
                const i64 down = high(oy, g.stride, g.pad, g.k, g.h) - low(oy, g.stride, g.pad),
                          across = high(ox, g.stride, g.pad, g.k, g.w) - low(ox, g.stride, g.pad);
                sum += dy[((image * g.oh + oy) * g.ow + ox) * g.c + channel] / ACC(down * across);
            }
        dx[i] = sum;
    }
}
