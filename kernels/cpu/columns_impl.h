/* Columns for convolutions of one to three dimensions with any stride, padding, dilation and
 * groups: the channels [first, first + c) of the input are taken. */

/* columns[(n, oz, oy, ox), (kz, ky, kx, c)]; 0 outside. */
int NAME(im2col)(const REAL *x, REAL *columns, const conv_geometry *g) {
    PARALLEL_FOR(g->n * g->od * g->oh * g->ow * g->kd * g->kh * g->kw * g->c)
    for (long line = 0; line < g->n * g->od * g->oh; line++) {
        const long oy = line % g->oh, oz = line / g->oh % g->od, image = line / g->oh / g->od;
        REAL *to = columns + line * g->ow * g->kd * g->kh * g->kw * g->c;
        for (long ox = 0; ox < g->ow; ox++)
            for (long kz = 0; kz < g->kd; kz++)
                for (long ky = 0; ky < g->kh; ky++)
                    for (long kx = 0; kx < g->kw; kx++, to += g->c) {
                        const long z = oz * g->sd + kz * g->dd - g->pd,
                                   y = oy * g->sh + ky * g->dh - g->ph,
                                   q = ox * g->sw + kx * g->dw - g->pw;
                        if (z >= 0 && z < g->d && y >= 0 && y < g->h && q >= 0 && q < g->w)
                            memcpy(to,
                                   x + (((image * g->d + z) * g->h + y) * g->w + q) * g->channels +
                                       g->first,
                                   (size_t)g->c * sizeof(REAL));
                        else
                            memset(to, 0, (size_t)g->c * sizeof(REAL));
                    }
    }
    return 0;
}

/* The transpose: dx (its channels [first, first + c)) = the sum of all column elements that came
 * from each; overwritten. */
int NAME(col2im)(const REAL *columns, REAL *dx, const conv_geometry *g) {
    const long taps = g->kd * g->kh * g->kw * g->c;
    PARALLEL_FOR(g->n * g->d * g->h * g->w * g->kd * g->kh * g->kw * g->c)
    for (long line = 0; line < g->n * g->d * g->h; line++) {
        const long y = line % g->h, z = line / g->h % g->d, image = line / g->h / g->d;
        for (long q = 0; q < g->w; q++) {
            REAL *to = dx + (line * g->w + q) * g->channels + g->first;
            memset(to, 0, (size_t)g->c * sizeof(REAL));
            for (long kz = 0; kz < g->kd; kz++)
                for (long ky = 0; ky < g->kh; ky++)
                    for (long kx = 0; kx < g->kw; kx++) {
                        const long back = z + g->pd - kz * g->dd, up = y + g->ph - ky * g->dh,
                                   left = q + g->pw - kx * g->dw;
                        if (back < 0 || up < 0 || left < 0 || back % g->sd || up % g->sh ||
                            left % g->sw)
                            continue;
                        if (back / g->sd >= g->od || up / g->sh >= g->oh || left / g->sw >= g->ow)
                            continue;
                        const long pixel =
                            ((image * g->od + back / g->sd) * g->oh + up / g->sh) * g->ow +
                            left / g->sw;
                        const REAL *from =
                            columns + pixel * taps + ((kz * g->kh + ky) * g->kw + kx) * g->c;
                        for (long i = 0; i < g->c; i++) to[i] += from[i];
                    }
        }
    }
    return 0;
}
