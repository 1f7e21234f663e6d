// Columns for convolutions of one to three dimensions with any stride, padding, dilation and
// groups; the channels [first, first + c) are taken.
extern "C" __global__ void im2col(const REAL *x, REAL *columns, const conv_geometry g) {
    FOR_EACH(i, g.n * g.od * g.oh * g.ow * g.kd * g.kh * g.kw * g.c) {
        i64 rest = i;
        const i64 channel = rest % g.c;
        rest /= g.c;
        const i64 kx = rest % g.kw;
        rest /= g.kw;
        const i64 ky = rest % g.kh;
        rest /= g.kh;
        const i64 kz = rest % g.kd;
        rest /= g.kd;
        const i64 ox = rest % g.ow;
        rest /= g.ow;
        const i64 oy = rest % g.oh;
        rest /= g.oh;
        const i64 oz = rest % g.od;
        const i64 image = rest / g.od;
        const i64 z = oz * g.sd + kz * g.dd - g.pd, y = oy * g.sh + ky * g.dh - g.ph,
                  q = ox * g.sw + kx * g.dw - g.pw;
        const bool inside = z >= 0 && z < g.d && y >= 0 && y < g.h && q >= 0 && q < g.w;
        columns[i] =
            inside ? x[(((image * g.d + z) * g.h + y) * g.w + q) * g.channels + g.first + channel]
                   : ACC(0);
    }
}

// Gathers every column element that came from an input: no atomics, one fixed order.
extern "C" __global__ void col2im(const REAL *columns, REAL *dx, const conv_geometry g) {
    FOR_EACH(i, g.n * g.d * g.h * g.w * g.c) {
        i64 rest = i;
        const i64 channel = rest % g.c;
        rest /= g.c;
        const i64 q = rest % g.w;
        rest /= g.w;
        const i64 y = rest % g.h;
        rest /= g.h;
        const i64 z = rest % g.d;
        const i64 image = rest / g.d;
        ACC sum = ACC(0);
        for (i64 kz = 0; kz < g.kd; kz++) {
            const i64 back = z + g.pd - kz * g.dd;
            if (back < 0 || back % g.sd || back / g.sd >= g.od) continue;
            for (i64 ky = 0; ky < g.kh; ky++) {
                const i64 up = y + g.ph - ky * g.dh;
                if (up < 0 || up % g.sh || up / g.sh >= g.oh) continue;
                for (i64 kx = 0; kx < g.kw; kx++) {
                    const i64 left = q + g.pw - kx * g.dw;
                    if (left < 0 || left % g.sw || left / g.sw >= g.ow) continue;
                    const i64 pixel =
                        ((image * g.od + back / g.sd) * g.oh + up / g.sh) * g.ow + left / g.sw;
                    sum += columns[(((pixel * g.kd + kz) * g.kh + ky) * g.kw + kx) * g.c + channel];
                }
            }
        }
        dx[(((image * g.d + z) * g.h + y) * g.w + q) * g.channels + g.first + channel] = sum;
    }
}
