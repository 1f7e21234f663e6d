/* 2-D convolution, NHWC, direct: no im2col. In a padded NHWC image the kw * ci inputs under one
 * kernel row are contiguous, so a convolution is, for each kernel row, a matrix product whose left
 * rows overlap. The tile keeps TILE_ROWS output pixels times TILE_VECTORS vectors of output
 * channels in registers.
 */

typedef struct {
    long height, width, channels; /* of one source image */
    long step; /* distance of its pixels in the padded image: 1, or the stride in an input gradient
                */
    long top, left; /* zeros before it */
    long padded_height, padded_width;
} NAME(padding_t);

/* Copies one image into the middle of `padded`, whose border and gaps are zero and stay zero. */
static void NAME(pad)(const NAME(padding_t) * p, const REAL *image, REAL *padded) {
    for (long y = 0; y < p->height; y++) {
        REAL *row = padded + ((p->top + y * p->step) * p->padded_width + p->left) * p->channels;
        const REAL *from = image + y * p->width * p->channels;
        if (p->step == 1) {
            memcpy(row, from, (size_t)(p->width * p->channels) * sizeof(REAL));
        } else {
            for (long x = 0; x < p->width; x++)
                memcpy(row + x * p->step * p->channels, from + x * p->channels,
                       (size_t)p->channels * sizeof(REAL));
        }
    }
}

ALWAYS_INLINE void NAME(store)(REAL *to, VEC value, long count) {
    if (count >= LANES)
        *(VEC *)to = value;
    else
        for (long i = 0; i < count; i++) to[i] = value[i];
}

/* rows output pixels times one panel of output channels. */
ALWAYS_INLINE void NAME(forward_tile)(const int rows, const REAL *a, long a_step, long a_line,
                                      long kh, long depth, const REAL *panel, const REAL *bias,
                                      int relu, REAL *out, long out_channels, long channels) {
    VEC acc[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECTORS; v++) acc[r][v] = *(const VEC *)(bias + v * LANES);
    for (long ky = 0; ky < kh; ky++) {
        const REAL *line = a + ky * a_line;
        for (long k = 0; k < depth; k++, panel += PANEL) {
            VEC w[TILE_VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < TILE_VECTORS; v++) w[v] = *(const VEC *)(panel + v * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                const REAL x = line[r * a_step + k];
#pragma GCC unroll 2
                for (int v = 0; v < TILE_VECTORS; v++) acc[r][v] += x * w[v];
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECTORS; v++) {
            /* x < 0 ? 0 : x keeps a NaN, so that a broken network is noticed */
            if (relu) acc[r][v] = (VEC)((IVEC)acc[r][v] & ~(IVEC)(acc[r][v] < (REAL)0));
            NAME(store)(out + r * out_channels + v * LANES, acc[r][v], channels - v * LANES);
        }
}

/* depth rows of one kernel row times one panel of output channels, summed over all output pixels of
 * an image. */
ALWAYS_INLINE void NAME(weight_tile)(const int rows, const REAL *a, long a_step, long a_line,
                                     const REAL *dy, long dy_channels, long out_height,
                                     long out_width, REAL *dw, long dw_channels) {
    VEC acc[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECTORS; v++)
            acc[r][v] = *(const VEC *)(dw + r * dw_channels + v * LANES);
    for (long y = 0; y < out_height; y++) {
        const REAL *pixel = a + y * a_line;
        for (long x = 0; x < out_width; x++, pixel += a_step, dy += dy_channels) {
            VEC g[TILE_VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < TILE_VECTORS; v++) g[v] = *(const VEC *)(dy + v * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
                for (int v = 0; v < TILE_VECTORS; v++) acc[r][v] += pixel[r] * g[v];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECTORS; v++)
            *(VEC *)(dw + r * dw_channels + v * LANES) = acc[r][v];
}

static void NAME(image_forward)(const REAL *padded, long padded_width, long in_channels,
                                long stride, long kh, long kw, const REAL *panels, const REAL *bias,
                                int relu, REAL *out, long out_height, long out_width,
                                long out_channels) {
    const long depth = kw * in_channels, a_line = padded_width * in_channels,
               a_step = stride * in_channels;
    const long tiles = (out_width + TILE_ROWS - 1) / TILE_ROWS;
    for (long c = 0; c < out_channels; c += PANEL, panels += kh * depth * PANEL) {
        for (long y = 0; y < out_height; y++)
            for (long t = 0; t < tiles; t++) {
                const long x = t * out_width / tiles, rows = (t + 1) * out_width / tiles - x;
                const REAL *a = padded + y * stride * a_line + x * a_step;
                REAL *o = out + (y * out_width + x) * out_channels + c;
#define CALL(R)                                                                                  \
    NAME(forward_tile)(R, a, a_step, a_line, kh, depth, panels, bias + c, relu, o, out_channels, \
                       out_channels - c)
                FOR_ROWS(rows, CALL)
#undef CALL
            }
    }
}

static REAL *NAME(zeros)(int slot, long count) {
    REAL *p = mpidl_scratch(slot, (size_t)count * sizeof(REAL) + 64);
    if (p) memset(p, 0, (size_t)count * sizeof(REAL) + 64);
    return p;
}

/* out[n, y, x, o] = act(bias[o] + sum over ky, kx, c of in[n, y*stride + ky - pad, x*stride + kx -
 * pad, c] * w[ky, kx, c, o]) w: (kh, kw, ci, co); bias: (co) or NULL. */
int NAME(conv2d_forward)(const REAL *in, const REAL *w, const REAL *bias, REAL *out,
                         const conv_geometry *g, int relu) {
    if (NAME(winograd_fits)(g, g->ph, g->oh, g->ow))
        return NAME(winograd_forward)(in, w, bias, out, g, relu);
    const NAME(padding_t)
        p = {g->h, g->w, g->channels, 1, g->ph, g->ph, g->h + 2 * g->ph, g->w + 2 * g->ph};
    const long depth = g->kh * g->kw * g->channels, panels = PANELS(g->outputs);
    const long space = p.padded_height * p.padded_width * g->channels;
    REAL *padded = NAME(zeros)(SCRATCH_INPUT, space * mpidl_threads);
    REAL *packed = NAME(zeros)(SCRATCH_WEIGHTS, panels * PANEL * (depth + 1));
    if (!padded || !packed) return MPIDL_NO_MEMORY;
    REAL *full_bias = packed + panels * PANEL * depth;
    if (bias) memcpy(full_bias, bias, (size_t)g->outputs * sizeof(REAL));
    for (long k = 0; k < depth; k++)
        for (long o = 0; o < g->outputs; o++)
            packed[((o / PANEL) * depth + k) * PANEL + o % PANEL] = w[k * g->outputs + o];
    PARALLEL {
        REAL *own = padded + THREAD * space;
        SHARED_FOR
        for (long i = 0; i < g->n; i++) {
            NAME(pad)(&p, in + i * g->h * g->w * g->channels, own);
            NAME(image_forward)(own, p.padded_width, g->channels, g->sh, g->kh, g->kw, packed,
                                full_bias, relu, out + i * g->oh * g->ow * g->outputs, g->oh, g->ow,
                                g->outputs);
        }
    }
    return 0;
}

/* din of conv2d_forward: a convolution of dout, its pixels `stride` apart, with flipped and
 * transposed weights. */
int NAME(conv2d_backward_input)(const REAL *dout, const REAL *w, REAL *din,
                                const conv_geometry *g) {
    if (NAME(winograd_fits)(g, 2 - g->ph, g->h, g->w))
        return NAME(winograd_backward_input)(dout, w, din, g);
    const NAME(padding_t) p = {g->oh,
                               g->ow,
                               g->outputs,
                               g->sh,
                               g->kh - 1 - g->ph,
                               g->kw - 1 - g->ph,
                               g->h + g->kh - 1,
                               g->w + g->kw - 1};
    const long depth = g->kh * g->kw * g->outputs, panels = PANELS(g->channels);
    const long space = p.padded_height * p.padded_width * g->outputs;
    REAL *padded = NAME(zeros)(SCRATCH_INPUT, space * mpidl_threads);
    REAL *packed = NAME(zeros)(SCRATCH_WEIGHTS, panels * PANEL * (depth + 1));
    if (!padded || !packed) return MPIDL_NO_MEMORY;
    for (long ky = 0; ky < g->kh; ky++)
        for (long kx = 0; kx < g->kw; kx++)
            for (long c = 0; c < g->channels; c++)
                for (long o = 0; o < g->outputs; o++) {
                    const long k = ((g->kh - 1 - ky) * g->kw + (g->kw - 1 - kx)) * g->outputs + o;
                    packed[((c / PANEL) * depth + k) * PANEL + c % PANEL] =
                        w[((ky * g->kw + kx) * g->channels + c) * g->outputs + o];
                }
    PARALLEL {
        REAL *own = padded + THREAD * space;
        SHARED_FOR
        for (long i = 0; i < g->n; i++) {
            NAME(pad)(&p, dout + i * g->oh * g->ow * g->outputs, own);
            NAME(image_forward)(own, p.padded_width, g->outputs, 1, g->kh, g->kw, packed,
                                packed + panels * PANEL * depth, 0,
                                din + i * g->h * g->w * g->channels, g->h, g->w, g->channels);
        }
    }
    return 0;
}

/* dw (kh, kw, ci, co) and db (co, or NULL) of conv2d_forward, overwritten. */
int NAME(conv2d_backward_weights)(const REAL *in, const REAL *dout, REAL *dw, REAL *db,
                                  const conv_geometry *g) {
    if (NAME(winograd_fits)(g, g->ph, g->oh, g->ow)) {
        if (db) {
            memset(db, 0, (size_t)g->outputs * sizeof(REAL));
            for (long q = 0; q < g->n * g->oh * g->ow; q++)
                for (long o = 0; o < g->outputs; o++) db[o] += dout[q * g->outputs + o];
        }
        return NAME(winograd_backward_weights)(in, dout, dw, g);
    }
    const NAME(padding_t)
        p = {g->h, g->w, g->channels, 1, g->ph, g->ph, g->h + 2 * g->ph, g->w + 2 * g->ph};
    const long depth = g->kw * g->channels, wide = PANELS(g->outputs) * PANEL,
               pixels = g->oh * g->ow, tiles = (depth + TILE_ROWS - 1) / TILE_ROWS;
    const long a_line = p.padded_width * g->channels, space = p.padded_height * a_line,
               jobs = wide / PANEL * g->kh * tiles;
    REAL *padded = NAME(zeros)(SCRATCH_INPUT, space * mpidl_threads);
    REAL *sums = NAME(zeros)(SCRATCH_WEIGHTS, (g->kh * depth + 1) * wide);
    REAL *widened =
        wide == g->outputs ? NULL : NAME(zeros)(SCRATCH_OUTPUT, pixels * wide * mpidl_threads);
    if (!padded || !sums || (wide != g->outputs && !widened)) return MPIDL_NO_MEMORY;
    REAL *bias_sums = sums + g->kh * depth * wide;
    PARALLEL { /* each thread goes through all images for its own tiles of dw */
        REAL *own = padded + THREAD * space,
             *wider = widened ? widened + THREAD * pixels * wide : NULL;
        for (long i = 0; i < g->n; i++) {
            const REAL *grad = dout + i * pixels * g->outputs;
            NAME(pad)(&p, in + i * g->h * g->w * g->channels, own);
            if (wider) {
                for (long q = 0; q < pixels; q++)
                    memcpy(wider + q * wide, grad + q * g->outputs,
                           (size_t)g->outputs * sizeof(REAL));
                grad = wider;
            }
            for (long job = jobs * THREAD / THREADS; job < jobs * (THREAD + 1) / THREADS; job++) {
                const long c = job / (g->kh * tiles) * PANEL, ky = job / tiles % g->kh,
                           t = job % tiles;
                const long k = t * depth / tiles, rows = (t + 1) * depth / tiles - k;
                const REAL *a = own + ky * a_line + k;
                REAL *d = sums + (ky * depth + k) * wide + c;
#define CALL(R)                                                                                   \
    NAME(weight_tile)(R, a, g->sh * g->channels, g->sh * a_line, grad + c, wide, g->oh, g->ow, d, \
                      wide)
                FOR_ROWS(rows, CALL)
#undef CALL
            }
            if (db && THREAD == 0)
                for (long q = 0; q < pixels; q++)
                    for (long o = 0; o < wide; o++) bias_sums[o] += grad[q * wide + o];
        }
    }
    for (long k = 0; k < g->kh * depth; k++)
        memcpy(dw + k * g->outputs, sums + k * wide, (size_t)g->outputs * sizeof(REAL));
    if (db) memcpy(db, bias_sums, (size_t)g->outputs * sizeof(REAL));
    return 0;
}
