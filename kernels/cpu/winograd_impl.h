/* 3x3 convolutions with stride 1 by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray,
 * 2016): tiles of 4x4 outputs take 36 multiplications for each pair of channels instead of 144.
 * Inputs, weights and results are transformed; in between stand 36 matrix products, summed by the
 * tile of tile.h. NHWC; numbers of channels are whole numbers of vectors.
 *
 * Tiles are numbered through all images; a block of them is transformed at a time. No result
 * depends on the division into blocks or threads: a tile's outputs come from it alone, and sums
 * over tiles (gradients of weights) run in their order.
 */
#define POINTS 36

typedef struct {
    long n, height, width, channels, pad; /* of the images that are read */
    long out_height, out_width, down, across, tiles;
} NAME(frame_t);

static NAME(frame_t) NAME(frame)(long n, long height, long width, long channels, long pad,
                                 long out_height, long out_width) {
    const long down = (out_height + 3) / 4, across = (out_width + 3) / 4;
    return (NAME(frame_t)){n,          height,    width, channels, pad,
                           out_height, out_width, down,  across,   n * down * across};
}

/* pad and the size of the output are those of the convolution that is done: of the input's gradient
 * too. */
int NAME(winograd_fits)(const conv_geometry *g, long pad, long out_height, long out_width) {
    const long down = (out_height + 3) / 4, across = (out_width + 3) / 4;
    const int shape = g->kh == 3 && g->kw == 3 && g->sh == 1 && pad <= 2;
    const int channels = g->channels >= 16 && g->outputs >= 16 && g->channels % LANES == 0 &&
                         g->outputs % LANES == 0;
    return mpidl_winograd && shape && channels &&
           3 * POINTS * down * across <= 2 * 9 * out_height * out_width;
}

/* One column (or row) of B^T d B: six values in, six out. */
ALWAYS_INLINE void NAME(input_line)(const VEC d[6], VEC t[6]) {
    const VEC a = d[4] - (REAL)4 * d[2], b = d[3] - (REAL)4 * d[1], c = d[4] - d[2],
              e = (REAL)2 * (d[3] - d[1]);
    t[0] = (REAL)4 * d[0] - (REAL)5 * d[2] + d[4];
    t[1] = a + b;
    t[2] = a - b;
    t[3] = c + e;
    t[4] = c - e;
    t[5] = (REAL)4 * d[1] - (REAL)5 * d[3] + d[5];
}

/* One line of A^T m A: six values in, four out. */
ALWAYS_INLINE void NAME(output_line)(const VEC m[6], VEC y[4]) {
    const VEC p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
    y[0] = m[0] + p + r;
    y[1] = q + (REAL)2 * s;
    y[2] = p + (REAL)4 * r;
    y[3] = q + (REAL)8 * s + m[5];
}

/* One line of A dy A^T: four values in, six out. */
ALWAYS_INLINE void NAME(gradient_line)(const VEC y[4], VEC m[6]) {
    const VEC p = y[0] + y[2], q = y[1] + y[3], r = y[0] + (REAL)4 * y[2],
              s = (REAL)2 * y[1] + (REAL)8 * y[3];
    m[0] = y[0];
    m[1] = p + q;
    m[2] = p - q;
    m[3] = r + s;
    m[4] = r - s;
    m[5] = y[3];
}

/* V[point][tile][channel] for tiles [first, first + count). */
static void NAME(input_tile)(const NAME(frame_t) * f, const REAL *images, long tile, REAL *v,
                             long between) {
    const long image = tile / (f->down * f->across), y0 = tile / f->across % f->down * 4 - f->pad,
               x0 = tile % f->across * 4 - f->pad;
    const REAL *from = images + image * f->height * f->width * f->channels;
    const int inside = y0 >= 0 && x0 >= 0 && y0 + 6 <= f->height && x0 + 6 <= f->width;
    for (long c = 0; c < f->channels; c += LANES) {
        VEC d[6][6], t[6][6];
        for (int x = 0; x < 6; x++) {
            VEC column[6], line[6];
            for (int y = 0; y < 6; y++) {
                const long row = y0 + y, col = x0 + x;
                if (inside || (row >= 0 && row < f->height && col >= 0 && col < f->width))
                    column[y] = *(const VEC *)(from + (row * f->width + col) * f->channels + c);
                else
                    column[y] = (VEC){0};
            }
            NAME(input_line)(column, line);
            for (int y = 0; y < 6; y++) d[y][x] = line[y];
        }
        for (int y = 0; y < 6; y++) NAME(input_line)(d[y], t[y]);
        for (int y = 0; y < 6; y++)
            for (int x = 0; x < 6; x++) *(VEC *)(v + (y * 6 + x) * between + c) = t[y][x];
    }
}

/* Results of one tile, from M[point][tile][channel], clipped at the image's edge; with bias and
 * ReLU. */
static void NAME(output_tile)(const NAME(frame_t) * f, const REAL *m, long between, long tile,
                              const REAL *bias, int relu, long channels, REAL *images) {
    const long image = tile / (f->down * f->across), y0 = tile / f->across % f->down * 4,
               x0 = tile % f->across * 4;
    const long high = f->out_height - y0 < 4 ? f->out_height - y0 : 4,
               wide = f->out_width - x0 < 4 ? f->out_width - x0 : 4;
    REAL *to = images + ((image * f->out_height + y0) * f->out_width + x0) * channels;
    for (long c = 0; c < channels; c += LANES) {
        VEC d[4][6];
        const VEC b = bias ? *(const VEC *)(bias + c) : (VEC){0};
        for (int x = 0; x < 6; x++) {
            VEC column[6], line[4];
            for (int y = 0; y < 6; y++) column[y] = *(const VEC *)(m + (y * 6 + x) * between + c);
            NAME(output_line)(column, line);
            for (int y = 0; y < 4; y++) d[y][x] = line[y];
        }
        for (long y = 0; y < high; y++) {
            VEC line[4];
            NAME(output_line)(d[y], line);
            for (long x = 0; x < wide; x++) {
                VEC value = line[x] + b;
                if (relu) value = (VEC)((IVEC)value & ~(IVEC)(value < (REAL)0)); /* keeps a NaN */
                *(VEC *)(to + (y * f->out_width + x) * channels + c) = value;
            }
        }
    }
}

/* dM = A dy A^T of one tile, in panels: [point][panel][tile][PANEL]. */
static void NAME(gradient_tile)(const NAME(frame_t) * f, const REAL *dout, long channels, long tile,
                                REAL *m, long between, long panel) {
    const long image = tile / (f->down * f->across), y0 = tile / f->across % f->down * 4,
               x0 = tile % f->across * 4;
    const REAL *from = dout + ((image * f->out_height + y0) * f->out_width + x0) * channels;
    for (long c = 0; c < channels; c += LANES) {
        VEC d[6][4], t[6];
        for (int x = 0; x < 4; x++) {
            VEC column[4], line[6];
            for (int y = 0; y < 4; y++)
                column[y] = y0 + y < f->out_height && x0 + x < f->out_width
                                ? *(const VEC *)(from + (y * f->out_width + x) * channels + c)
                                : (VEC){0};
            NAME(gradient_line)(column, line);
            for (int y = 0; y < 6; y++) d[y][x] = line[y];
        }
        REAL *to = m + c / PANEL * panel + c % PANEL;
        for (int y = 0; y < 6; y++) {
            NAME(gradient_line)(d[y], t);
            for (int x = 0; x < 6; x++) *(VEC *)(to + (y * 6 + x) * between) = t[x];
        }
    }
}

static const double NAME(G)[6][3] = {{1 / 4.0, 0, 0},
                                     {-1 / 6.0, -1 / 6.0, -1 / 6.0},
                                     {-1 / 6.0, 1 / 6.0, -1 / 6.0},
                                     {1 / 24.0, 1 / 12.0, 1 / 6.0},
                                     {1 / 24.0, -1 / 12.0, 1 / 6.0},
                                     {0, 0, 1}};
#define G NAME(G)

/* G w G^T of w (3, 3, ci, co) in panels: [point][panel][ci][PANEL]; turned: of the flipped weights
 * (3, 3, co, ci). */
static void NAME(transform_weights)(const REAL *w, long ci, long co, int turned, REAL *u) {
    enum { TOGETHER = 16 }; /* inputs, so that the flipped weights are read along their rows */
    const long in = turned ? co : ci, out = turned ? ci : co, wide = PANELS(out) * PANEL;
    PARALLEL_FOR(in * out * POINTS)
    for (long p = 0; p < PANELS(out); p++) {
        REAL taps[TOGETHER][9][PANEL], half[6][3][PANEL];
        memset(taps, 0, sizeof taps);
        for (long first = 0; first < in; first += TOGETHER) {
            const long count = in - first < TOGETHER ? in - first : TOGETHER,
                       columns = out - p * PANEL < PANEL ? out - p * PANEL : PANEL;
            for (int s = 0; s < 9; s++) {
                if (turned) {
                    for (long j = 0; j < columns; j++)
                        for (long k = 0; k < count; k++)
                            taps[k][s][j] = w[((8 - s) * ci + p * PANEL + j) * co + first + k];
                } else {
                    for (long k = 0; k < count; k++)
                        memcpy(taps[k][s], w + (s * ci + first + k) * co + p * PANEL,
                               (size_t)columns * sizeof(REAL));
                }
            }
            for (long k = 0; k < count; k++) {
                for (int y = 0; y < 6; y++)
                    for (int x = 0; x < 3; x++)
                        for (long j = 0; j < PANEL; j++)
                            half[y][x][j] = (REAL)G[y][0] * taps[k][x][j] +
                                            (REAL)G[y][1] * taps[k][3 + x][j] +
                                            (REAL)G[y][2] * taps[k][6 + x][j];
                for (int y = 0; y < 6; y++)
                    for (int x = 0; x < 6; x++) {
                        REAL *to = u + (y * 6 + x) * in * wide + (p * in + first + k) * PANEL;
                        for (long j = 0; j < PANEL; j++)
                            to[j] = (REAL)G[x][0] * half[y][0][j] + (REAL)G[x][1] * half[y][1][j] +
                                    (REAL)G[x][2] * half[y][2][j];
                    }
            }
        }
    }
}

/* Tiles in a block: few, so that it stays in the second-level cache; more where the weights would
 * be read too often. */
static long NAME(block_of)(const NAME(frame_t) * f, long channels) {
    const long together = f->channels + channels,
               weights = f->channels * channels * POINTS * (long)sizeof(REAL);
    long tiles = (256 << 10) / (POINTS * (long)sizeof(REAL) * together);
    if (weights > 320 << 10 && tiles < 48) tiles = 48;
    if (weights > 4 << 20) tiles = 96;
    tiles = tiles < TILE_ROWS ? TILE_ROWS : tiles / TILE_ROWS * TILE_ROWS;
    return tiles < f->tiles || f->tiles == 0 ? tiles : f->tiles;
}

/* M[point] = V[point] U[point] for a block of tiles. */
ALWAYS_INLINE void NAME(point_product)(const REAL *v, const REAL *u, REAL *m, long tiles, long in,
                                       long wide) {
    for (long p = 0; p < wide / PANEL; p++)
        for (long t = 0; t < tiles; t += TILE_ROWS) {
            const long rows = tiles - t < TILE_ROWS ? tiles - t : TILE_ROWS;
#define CALL(R)                                                                                \
    NAME(gemm_tile)(R, v + t * in, in, 1, u + p * in * PANEL, PANEL, m + t * wide + p * PANEL, \
                    wide, in, 1)
            FOR_ROWS(rows, CALL)
#undef CALL
        }
}

static int NAME(winograd)(const NAME(frame_t) * f, const REAL *in, const REAL *w, long ci, long co,
                          int turned, const REAL *bias, int relu, REAL *out) {
    const long channels = turned ? ci : co, wide = PANELS(channels) * PANEL,
               block = NAME(block_of)(f, channels);
    REAL *u = mpidl_scratch(SCRATCH_WEIGHTS, (size_t)(POINTS * f->channels * wide) * sizeof(REAL));
    REAL *v = mpidl_scratch(SCRATCH_INPUT, (size_t)(POINTS * block * f->channels) * sizeof(REAL));
    REAL *m = mpidl_scratch(SCRATCH_OUTPUT, (size_t)(POINTS * block * wide) * sizeof(REAL));
    if (!u || !v || !m) return MPIDL_NO_MEMORY;
    NAME(transform_weights)(w, ci, co, turned, u);
    PARALLEL for (long first = 0; first < f->tiles; first += block) {
        const long count = f->tiles - first < block ? f->tiles - first : block;
        SHARED_FOR for (long t = 0; t < count; t++)
            NAME(input_tile)(f, in, first + t, v + t * f->channels, block * f->channels);
        SHARED_FOR for (long point = 0; point < POINTS; point++)
            NAME(point_product)(v + point * block * f->channels, u + point * f->channels * wide,
                                m + point * block * wide, count, f->channels, wide);
        SHARED_FOR for (long t = 0; t < count; t++)
            NAME(output_tile)(f, m + t * wide, block * wide, first + t, bias, relu, channels, out);
    }
    return 0;
}

int NAME(winograd_forward)(const REAL *in, const REAL *w, const REAL *bias, REAL *out,
                           const conv_geometry *g, int relu) {
    const NAME(frame_t) f = NAME(frame)(g->n, g->h, g->w, g->channels, g->ph, g->oh, g->ow);
    return NAME(winograd)(&f, in, w, g->channels, g->outputs, 0, bias, relu, out);
}

/* The gradient of the input is the convolution of dout with flipped, transposed weights and padding
 * 2 - pad. */
int NAME(winograd_backward_input)(const REAL *dout, const REAL *w, REAL *din,
                                  const conv_geometry *g) {
    const NAME(frame_t) f = NAME(frame)(g->n, g->oh, g->ow, g->outputs, 2 - g->ph, g->h, g->w);
    return NAME(winograd)(&f, dout, w, g->channels, g->outputs, 1, NULL, 0, din);
}

/* dw (3, 3, ci, co) = G^T (sum over tiles of V^T dM) G. */
static void NAME(finish_weights)(const REAL *sums, long ci, long co, long wide, REAL *dw) {
    PARALLEL_FOR(ci * co * POINTS)
    for (long k = 0; k < ci; k++)
        for (long c = 0; c < co; c += LANES) {
            VEC half[3][6];
            for (int x = 0; x < 6; x++)
                for (int y = 0; y < 3; y++) {
                    VEC sum = {0};
                    for (int s = 0; s < 6; s++)
                        sum += (REAL)G[s][y] *
                               *(const VEC *)(sums + ((s * 6 + x) * ci + k) * wide + c);
                    half[y][x] = sum;
                }
            for (int y = 0; y < 3; y++)
                for (int x = 0; x < 3; x++) {
                    VEC sum = {0};
                    for (int s = 0; s < 6; s++) sum += (REAL)G[s][x] * half[y][s];
                    *(VEC *)(dw + ((y * 3 + x) * ci + k) * co + c) = sum;
                }
        }
}

int NAME(winograd_backward_weights)(const REAL *in, const REAL *dout, REAL *dw,
                                    const conv_geometry *g) {
    const NAME(frame_t) f = NAME(frame)(g->n, g->h, g->w, g->channels, g->ph, g->oh, g->ow);
    const long ci = g->channels, co = g->outputs;
    const long wide = PANELS(co) * PANEL, panels = wide / PANEL,
               rows = (ci + TILE_ROWS - 1) / TILE_ROWS;
    long block = 96;
    if (block > f.tiles) block = f.tiles ? f.tiles : 1;
    REAL *sums = mpidl_scratch(SCRATCH_WEIGHTS, (size_t)(POINTS * ci * wide) * sizeof(REAL));
    REAL *v = mpidl_scratch(SCRATCH_INPUT, (size_t)(POINTS * block * ci) * sizeof(REAL));
    REAL *m = mpidl_scratch(SCRATCH_OUTPUT, (size_t)(POINTS * block * wide) * sizeof(REAL));
    if (!sums || !v || !m) return MPIDL_NO_MEMORY;
    if (!f.tiles) memset(sums, 0, (size_t)(POINTS * ci * wide) * sizeof(REAL));
    if (wide != co) memset(m, 0, (size_t)(POINTS * block * wide) * sizeof(REAL));
    PARALLEL for (long first = 0; first < f.tiles; first += block) {
        const long count = f.tiles - first < block ? f.tiles - first : block;
        SHARED_FOR for (long t = 0; t < count; t++) {
            NAME(input_tile)(&f, in, first + t, v + t * ci, block * ci);
            NAME(gradient_tile)(&f, dout, co, first + t, m + t * PANEL, block * wide,
                                block * PANEL);
        }
        SHARED_FOR for (long job = 0; job < POINTS * panels; job++) {
            const long point = job / panels, p = job % panels;
            for (long t = 0; t < rows; t++) {
                const long k = t * ci / rows, high = (t + 1) * ci / rows - k;
                const REAL *a = v + point * block * ci + k,
                           *b = m + point * block * wide + p * block * PANEL;
                REAL *to = sums + (point * ci + k) * wide + p * PANEL;
#define CALL(R) NAME(gemm_tile)(R, a, 1, ci, b, PANEL, to, wide, count, first == 0)
                FOR_ROWS(high, CALL)
#undef CALL
            }
        }
    }
    NAME(finish_weights)(sums, ci, co, wide, dw);
    return 0;
}
#undef POINTS
#undef G
