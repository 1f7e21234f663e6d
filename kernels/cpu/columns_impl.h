/* Columns for convolutions of one to three dimensions with any stride, padding, dilation and groups (dimensions that are missing have
 * extent 1). A part of the channels, [c0, c0 + cg) of `channels`, is taken: a group. */
#define GEOMETRY                                                                                                                           \
    long n, long d, long h, long w, long channels, long c0, long cg, long kd, long kh, long kw, long sd, long sh, long sw, long pd,        \
        long ph, long pw, long gd, long gh, long gw, long od, long oh, long ow

/* columns[(n, oz, oy, ox), (kz, ky, kx, c)]; 0 outside. */
int NAME(im2col)(const REAL *x, REAL *columns, GEOMETRY) {
    PARALLEL_FOR(n *od *oh *ow *kd *kh *kw *cg)
    for (long line = 0; line < n * od * oh; line++) {
        const long oy = line % oh, oz = line / oh % od, image = line / oh / od;
        REAL *to = columns + line * ow * kd * kh * kw * cg;
        for (long ox = 0; ox < ow; ox++)
            for (long kz = 0; kz < kd; kz++)
                for (long ky = 0; ky < kh; ky++)
                    for (long kx = 0; kx < kw; kx++, to += cg) {
                        const long z = oz * sd + kz * gd - pd, y = oy * sh + ky * gh - ph, q = ox * sw + kx * gw - pw;
                        if (z >= 0 && z < d && y >= 0 && y < h && q >= 0 && q < w)
                            memcpy(to, x + (((image * d + z) * h + y) * w + q) * channels + c0, (size_t)cg * sizeof(REAL));
                        else
                            memset(to, 0, (size_t)cg * sizeof(REAL));
                    }
    }
    return 0;
}

/* The transpose: dx (channels [c0, c0 + cg) of it) = the sum of all column elements that came from each; overwritten. */
int NAME(col2im)(const REAL *columns, REAL *dx, GEOMETRY) {
    const long taps = kd * kh * kw * cg;
    PARALLEL_FOR(n *d *h *w *kd *kh *kw *cg)
    for (long line = 0; line < n * d * h; line++) {
        const long y = line % h, z = line / h % d, image = line / h / d;
        for (long q = 0; q < w; q++) {
            REAL *to = dx + (line * w + q) * channels + c0;
            memset(to, 0, (size_t)cg * sizeof(REAL));
            for (long kz = 0; kz < kd; kz++)
                for (long ky = 0; ky < kh; ky++)
                    for (long kx = 0; kx < kw; kx++) {
                        const long back = z + pd - kz * gd, up = y + ph - ky * gh, left = q + pw - kx * gw;
                        if (back < 0 || up < 0 || left < 0 || back % sd || up % sh || left % sw) continue;
                        if (back / sd >= od || up / sh >= oh || left / sw >= ow) continue;
                        const long pixel = ((image * od + back / sd) * oh + up / sh) * ow + left / sw;
                        const REAL *from = columns + pixel * taps + ((kz * kh + ky) * kw + kx) * cg;
                        for (long c = 0; c < cg; c++) to[c] += from[c];
                    }
        }
    }
    return 0;
}
#undef GEOMETRY
