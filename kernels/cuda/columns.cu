// Columns for convolutions of one to three dimensions with any stride, padding, dilation and groups; channels [c0, c0 + cg) are taken.
extern "C" __global__ void im2col(const REAL *x, REAL *columns, i64 n, i64 d, i64 h, i64 w, i64 channels, i64 c0, i64 cg, i64 kd, i64 kh,
                                  i64 kw, i64 sd, i64 sh, i64 sw, i64 pd, i64 ph, i64 pw, i64 gd, i64 gh, i64 gw, i64 od, i64 oh, i64 ow) {
    FOR_EACH(i, n * od * oh * ow * kd * kh * kw * cg) {
        i64 rest = i;
        const i64 c = rest % cg; rest /= cg;
        const i64 kx = rest % kw; rest /= kw;
        const i64 ky = rest % kh; rest /= kh;
        const i64 kz = rest % kd; rest /= kd;
        const i64 ox = rest % ow; rest /= ow;
        const i64 oy = rest % oh; rest /= oh;
        const i64 oz = rest % od;
        const i64 image = rest / od;
        const i64 z = oz * sd + kz * gd - pd, y = oy * sh + ky * gh - ph, q = ox * sw + kx * gw - pw;
        const bool inside = z >= 0 && z < d && y >= 0 && y < h && q >= 0 && q < w;
        columns[i] = inside ? x[(((image * d + z) * h + y) * w + q) * channels + c0 + c] : ACC(0);
    }
}

// Gathers every column element that came from an input: no atomics, one fixed order.
extern "C" __global__ void col2im(const REAL *columns, REAL *dx, i64 n, i64 d, i64 h, i64 w, i64 channels, i64 c0, i64 cg, i64 kd, i64 kh,
                                  i64 kw, i64 sd, i64 sh, i64 sw, i64 pd, i64 ph, i64 pw, i64 gd, i64 gh, i64 gw, i64 od, i64 oh, i64 ow) {
    FOR_EACH(i, n * d * h * w * cg) {
        i64 rest = i;
        const i64 c = rest % cg; rest /= cg;
        const i64 q = rest % w; rest /= w;
        const i64 y = rest % h; rest /= h;
        const i64 z = rest % d;
        const i64 image = rest / d;
        ACC sum = ACC(0);
        for (i64 kz = 0; kz < kd; kz++) {
            const i64 back = z + pd - kz * gd;
            if (back < 0 || back % sd || back / sd >= od) continue;
            for (i64 ky = 0; ky < kh; ky++) {
                const i64 up = y + ph - ky * gh;
                if (up < 0 || up % sh || up / sh >= oh) continue;
                for (i64 kx = 0; kx < kw; kx++) {
                    const i64 left = q + pw - kx * gw;
                    if (left < 0 || left % sw || left / sw >= ow) continue;
                    const i64 pixel = ((image * od + back / sd) * oh + up / sh) * ow + left / sw;
                    sum += columns[(((pixel * kd + kz) * kh + ky) * kw + kx) * cg + c];
                }
            }
        }
        dx[(((image * d + z) * h + y) * w + q) * channels + c0 + c] = sum;
    }
}
