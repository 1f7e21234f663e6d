/* 2-D convolution, NHWC, direct: no im2col. In a padded NHWC image the kw * ci inputs under one kernel row are contiguous, so
 * a convolution is, for each kernel row, a matrix product whose left rows overlap. The tile keeps TILE_ROWS output pixels
 * times TILE_VECTORS vectors of output channels in registers.
 */
#define LANES ((long)(VECTOR_BYTES / sizeof(REAL)))
#define PANEL (TILE_VECTORS * LANES)

typedef struct {
    long height, width, channels;    /* of one source image */
    long step;                       /* distance of its pixels in the padded image: 1, or the stride in an input gradient */
    long top, left;                  /* zeros before it */
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
                memcpy(row + x * p->step * p->channels, from + x * p->channels, (size_t)p->channels * sizeof(REAL));
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
ALWAYS_INLINE void NAME(forward_tile)(const int rows, const REAL *a, long a_step, long a_line, long kh, long depth, const REAL *panel,
                                      const REAL *bias, int relu, REAL *out, long out_channels, long channels) {
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

/* depth rows of one kernel row times one panel of output channels, summed over all output pixels of an image. */
ALWAYS_INLINE void NAME(weight_tile)(const int rows, const REAL *a, long a_step, long a_line, const REAL *dy, long dy_channels,
                                     long out_height, long out_width, REAL *dw, long dw_channels) {
    VEC acc[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECTORS; v++) acc[r][v] = *(const VEC *)(dw + r * dw_channels + v * LANES);
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
        for (int v = 0; v < TILE_VECTORS; v++) *(VEC *)(dw + r * dw_channels + v * LANES) = acc[r][v];
}

static void NAME(image_forward)(const REAL *padded, long padded_width, long in_channels, long stride, long kh, long kw, const REAL *panels,
                                const REAL *bias, int relu, REAL *out, long out_height, long out_width, long out_channels) {
    const long depth = kw * in_channels, a_line = padded_width * in_channels, a_step = stride * in_channels;
    const long tiles = (out_width + TILE_ROWS - 1) / TILE_ROWS;
    for (long c = 0; c < out_channels; c += PANEL, panels += kh * depth * PANEL) {
        for (long y = 0; y < out_height; y++)
            for (long t = 0; t < tiles; t++) {
                const long x = t * out_width / tiles, rows = (t + 1) * out_width / tiles - x;
                const REAL *a = padded + y * stride * a_line + x * a_step;
                REAL *o = out + (y * out_width + x) * out_channels + c;
#define CALL(R) NAME(forward_tile)(R, a, a_step, a_line, kh, depth, panels, bias + c, relu, o, out_channels, out_channels - c)
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

int NAME(winograd_fits)(long ci, long co, long kh, long kw, long stride, long pad, long out_height, long out_width);
int NAME(winograd_forward)(const REAL *in, const REAL *w, const REAL *bias, REAL *out, long n, long height, long width, long ci, long co,
                           long pad, long out_height, long out_width, int relu);
int NAME(winograd_backward_input)(const REAL *dout, const REAL *w, REAL *din, long n, long height, long width, long ci, long co, long pad,
                                  long out_height, long out_width);
int NAME(winograd_backward_weights)(const REAL *in, const REAL *dout, REAL *dw, long n, long height, long width, long ci, long co, long pad,
                                    long out_height, long out_width);

#define PANELS(channels) (((channels) + PANEL - 1) / PANEL)

/* out[n, y, x, o] = act(bias[o] + sum over ky, kx, c of in[n, y*stride + ky - pad, x*stride + kx - pad, c] * w[ky, kx, c, o])
 * w: (kh, kw, ci, co); bias: (co) or NULL. */
int NAME(conv2d_forward)(const REAL *in, const REAL *w, const REAL *bias, REAL *out, long n, long height, long width, long ci, long co,
                         long kh, long kw, long stride, long pad, long out_height, long out_width, int relu) {
    if (NAME(winograd_fits)(ci, co, kh, kw, stride, pad, out_height, out_width))
        return NAME(winograd_forward)(in, w, bias, out, n, height, width, ci, co, pad, out_height, out_width, relu);
    const NAME(padding_t) p = {height, width, ci, 1, pad, pad, height + 2 * pad, width + 2 * pad};
    const long depth = kh * kw * ci, panels = PANELS(co);
    const long space = p.padded_height * p.padded_width * ci;
    REAL *padded = NAME(zeros)(SCRATCH_INPUT, space * mpidl_threads);
    REAL *packed = NAME(zeros)(SCRATCH_WEIGHTS, panels * PANEL * (depth + 1));
    if (!padded || !packed) return MPIDL_NO_MEMORY;
    REAL *full_bias = packed + panels * PANEL * depth;
    if (bias) memcpy(full_bias, bias, (size_t)co * sizeof(REAL));
    for (long k = 0; k < depth; k++)
        for (long o = 0; o < co; o++) packed[((o / PANEL) * depth + k) * PANEL + o % PANEL] = w[k * co + o];
    PARALLEL {
        REAL *own = padded + THREAD * space;
        SHARED_FOR
        for (long i = 0; i < n; i++) {
            NAME(pad)(&p, in + i * height * width * ci, own);
            NAME(image_forward)(own, p.padded_width, ci, stride, kh, kw, packed, full_bias, relu,
                                out + i * out_height * out_width * co, out_height, out_width, co);
        }
    }
    return 0;
}

/* din of conv2d_forward: a convolution of dout, its pixels `stride` apart, with flipped and transposed weights. */
int NAME(conv2d_backward_input)(const REAL *dout, const REAL *w, REAL *din, long n, long height, long width, long ci, long co, long kh,
                                long kw, long stride, long pad, long out_height, long out_width) {
    if (NAME(winograd_fits)(co, ci, kh, kw, stride, 2 - pad, height, width))
        return NAME(winograd_backward_input)(dout, w, din, n, height, width, ci, co, pad, out_height, out_width);
    const NAME(padding_t) p = {out_height, out_width, co, stride, kh - 1 - pad, kw - 1 - pad, height + kh - 1, width + kw - 1};
    const long depth = kh * kw * co, panels = PANELS(ci);
    const long space = p.padded_height * p.padded_width * co;
    REAL *padded = NAME(zeros)(SCRATCH_INPUT, space * mpidl_threads);
    REAL *packed = NAME(zeros)(SCRATCH_WEIGHTS, panels * PANEL * (depth + 1));
    if (!padded || !packed) return MPIDL_NO_MEMORY;
    for (long ky = 0; ky < kh; ky++)
        for (long kx = 0; kx < kw; kx++)
            for (long c = 0; c < ci; c++)
                for (long o = 0; o < co; o++) {
                    const long k = ((kh - 1 - ky) * kw + (kw - 1 - kx)) * co + o;
                    packed[((c / PANEL) * depth + k) * PANEL + c % PANEL] = w[((ky * kw + kx) * ci + c) * co + o];
                }
    PARALLEL {
        REAL *own = padded + THREAD * space;
        SHARED_FOR
        for (long i = 0; i < n; i++) {
            NAME(pad)(&p, dout + i * out_height * out_width * co, own);
            NAME(image_forward)(own, p.padded_width, co, 1, kh, kw, packed, packed + panels * PANEL * depth, 0,
                                din + i * height * width * ci, height, width, ci);
        }
    }
    return 0;
}

/* dw (kh, kw, ci, co) and db (co, or NULL) of conv2d_forward, overwritten. */
int NAME(conv2d_backward_weights)(const REAL *in, const REAL *dout, REAL *dw, REAL *db, long n, long height, long width, long ci, long co,
                                  long kh, long kw, long stride, long pad, long out_height, long out_width) {
    if (NAME(winograd_fits)(ci, co, kh, kw, stride, pad, out_height, out_width)) {
        if (db) memset(db, 0, (size_t)co * sizeof(REAL));
        for (long q = 0; db && q < n * out_height * out_width; q++)
            for (long o = 0; o < co; o++) db[o] += dout[q * co + o];
        return NAME(winograd_backward_weights)(in, dout, dw, n, height, width, ci, co, pad, out_height, out_width);
    }
    const NAME(padding_t) p = {height, width, ci, 1, pad, pad, height + 2 * pad, width + 2 * pad};
    const long depth = kw * ci, wide = PANELS(co) * PANEL, pixels = out_height * out_width, tiles = (depth + TILE_ROWS - 1) / TILE_ROWS;
    const long a_line = p.padded_width * ci, space = p.padded_height * a_line, jobs = wide / PANEL * kh * tiles;
    REAL *padded = NAME(zeros)(SCRATCH_INPUT, space * mpidl_threads);
    REAL *sums = NAME(zeros)(SCRATCH_WEIGHTS, (kh * depth + 1) * wide);
    REAL *widened = wide == co ? NULL : NAME(zeros)(SCRATCH_OUTPUT, pixels * wide * mpidl_threads);
    if (!padded || !sums || (wide != co && !widened)) return MPIDL_NO_MEMORY;
    REAL *bias_sums = sums + kh * depth * wide;
    PARALLEL { /* each thread goes through all images for its own tiles of dw */
        REAL *own = padded + THREAD * space, *wider = widened ? widened + THREAD * pixels * wide : NULL;
        for (long i = 0; i < n; i++) {
            const REAL *g = dout + i * pixels * co;
            NAME(pad)(&p, in + i * height * width * ci, own);
            if (wider) {
                for (long q = 0; q < pixels; q++) memcpy(wider + q * wide, g + q * co, (size_t)co * sizeof(REAL));
                g = wider;
            }
            for (long job = jobs * THREAD / THREADS; job < jobs * (THREAD + 1) / THREADS; job++) {
                const long c = job / (kh * tiles) * PANEL, ky = job / tiles % kh, t = job % tiles;
                const long k = t * depth / tiles, rows = (t + 1) * depth / tiles - k;
                const REAL *a = own + ky * a_line + k;
                REAL *d = sums + (ky * depth + k) * wide + c;
#define CALL(R) NAME(weight_tile)(R, a, stride * ci, stride * a_line, g + c, wide, out_height, out_width, d, wide)
                FOR_ROWS(rows, CALL)
#undef CALL
            }
            if (db && THREAD == 0)
                for (long q = 0; q < pixels; q++)
                    for (long o = 0; o < wide; o++) bias_sums[o] += g[q * wide + o];
        }
    }
    for (long k = 0; k < kh * depth; k++) memcpy(dw + k * co, sums + k * wide, (size_t)co * sizeof(REAL));
    if (db) memcpy(db, bias_sums, (size_t)co * sizeof(REAL));
    return 0;
}

#undef LANES
#undef PANEL
#undef PANELS
