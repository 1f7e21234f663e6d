/* Matrix products of any strides. Blocks of A and single panels of B are copied so that a tile
 * reads memory in one direction; how that is done, and how many threads do it, changes no bit of
 * the result (see tile.h): a batch computed in parts gives the same.
 */
#define DEPTH 256              /* a panel of B of this depth stays in the first-level cache */
#define CHUNK (16 * TILE_ROWS) /* rows of A that stay in the second-level cache */

typedef struct {
    const REAL *a, *b, *bias;
    REAL *c;
    long a_row, a_k, b_k, b_col, c_row, c_col, m, n, k;
    int relu, accumulate;
} NAME(gemm_t);

/* Rows [i, i + rows) of A at k0, as [tile][k][TILE_ROWS]. */
static void NAME(pack_a)(const NAME(gemm_t) * g, long i, long rows, long k0, long depth,
                         REAL *packed) {
    for (long t = 0; t < rows; t += TILE_ROWS, packed += depth * TILE_ROWS) {
        const long count = rows - t < TILE_ROWS ? rows - t : TILE_ROWS;
        const REAL *a = g->a + (i + t) * g->a_row + k0 * g->a_k;
        if (g->a_row == 1 && count == TILE_ROWS) {
            for (long k = 0; k < depth; k++)
                memcpy(packed + k * TILE_ROWS, a + k * g->a_k, TILE_ROWS * sizeof(REAL));
        } else {
            for (long r = 0; r < count; r++)
                for (long k = 0; k < depth; k++)
                    packed[k * TILE_ROWS + r] = a[r * g->a_row + k * g->a_k];
        }
    }
}

/* Columns [j, j + cols) of B at k0, as [k][PANEL]. */
static void NAME(pack_b)(const NAME(gemm_t) * g, long j, long cols, long k0, long depth,
                         REAL *packed) {
    const REAL *b = g->b + k0 * g->b_k + j * g->b_col;
    if (g->b_col == 1 && cols == PANEL) {
        for (long k = 0; k < depth; k++)
            memcpy(packed + k * PANEL, b + k * g->b_k, PANEL * sizeof(REAL));
        return;
    }
    if (cols < PANEL) memset(packed, 0, (size_t)(depth * PANEL) * sizeof(REAL));
    for (long q = 0; q < cols; q++)
        for (long k = 0; k < depth; k++) packed[k * PANEL + q] = b[k * g->b_k + q * g->b_col];
}

/* A tile of C at (i, j): `rows` rows times `cols` columns. Its last visit adds the bias and applies
 * the ReLU. */
static void NAME(gemm_block)(const NAME(gemm_t) * g, const REAL *a, long a_row, long a_k,
                             const REAL *b, long b_k, long i, long rows, long j, long cols,
                             long depth, int first, int last) {
    REAL scratch[TILE_ROWS * PANEL] __attribute__((aligned(64)));
    REAL *out = g->c + i * g->c_row + j * g->c_col;
    const int direct = g->c_col == 1 && cols == PANEL;
    REAL *tile = direct ? out : scratch;
    const long row = direct ? g->c_row : PANEL;
    if (!direct && !first)
        for (long r = 0; r < rows; r++)
            for (long q = 0; q < PANEL; q++)
                scratch[r * PANEL + q] = q < cols ? out[r * g->c_row + q * g->c_col] : 0;
#define CALL(R) NAME(gemm_tile)(R, a, a_row, a_k, b, b_k, tile, row, depth, first)
    FOR_ROWS(rows, CALL)
#undef CALL
    if (last && (g->bias || g->relu))
        for (long r = 0; r < rows; r++)
            for (long q = 0; q < cols; q++) {
                const REAL v = tile[r * row + q] + (g->bias ? g->bias[j + q] : 0);
                tile[r * row + q] = g->relu && v < 0 ? 0 : v; /* keeps a NaN */
            }
    if (!direct)
        for (long r = 0; r < rows; r++)
            for (long q = 0; q < cols; q++)
                out[r * g->c_row + q * g->c_col] = scratch[r * PANEL + q];
}

/* Few rows: copying B would cost as much as using it. */
static void NAME(gemm_thin)(const NAME(gemm_t) * g) {
    PARALLEL_FOR(g->m * g->n * g->k / 16)
    for (long j = 0; j < g->n / PANEL; j++)
        NAME(gemm_block)(g, g->a, g->a_row, g->a_k, g->b + j * PANEL, g->b_k, 0, g->m, j * PANEL,
                         PANEL, g->k, !g->accumulate, 1);
}

static void NAME(gemm_chunk)(const NAME(gemm_t) * g, long i, long chunk, long k0, long depth,
                             REAL *packed_a) {
    const long tiles = (chunk + TILE_ROWS - 1) / TILE_ROWS;
    NAME(pack_a)(g, i, chunk, k0, depth, packed_a);
    PARALLEL_FOR(chunk * g->n * depth / 16)
    for (long p = 0; p < PANELS(g->n); p++) {
        REAL packed_b[DEPTH * PANEL] __attribute__((aligned(64)));
        const long j = p * PANEL, cols = g->n - j < PANEL ? g->n - j : PANEL;
        NAME(pack_b)(g, j, cols, k0, depth, packed_b);
        for (long t = 0; t < tiles; t++) {
            const long rows = chunk - t * TILE_ROWS < TILE_ROWS ? chunk - t * TILE_ROWS : TILE_ROWS;
            NAME(gemm_block)(g, packed_a + t * TILE_ROWS * depth, 1, TILE_ROWS, packed_b, PANEL,
                             i + t * TILE_ROWS, rows, j, cols, depth, k0 == 0 && !g->accumulate,
                             k0 + depth == g->k);
        }
    }
}

/* C (m, n) = act(A (m, k) B (k, n) + bias (n)), or C += with accumulate. All strides in elements,
 * any; bias may be NULL. */
int NAME(gemm)(const REAL *a, long a_row, long a_k, const REAL *b, long b_k, long b_col, REAL *c,
               long c_row, long c_col, const REAL *bias, long m, long n, long k, int relu,
               int accumulate) {
    const int turn = c_col != 1 && c_row == 1 &&
                     !bias; /* rows of C should be contiguous: compute its transpose */
    const NAME(gemm_t) g =
        turn ? (NAME(gemm_t)){b,     a,     bias, c, b_col, b_k,  a_k,       a_row,
                              c_col, c_row, n,    m, k,     relu, accumulate}
             : (NAME(gemm_t)){a,     b,     bias, c, a_row, a_k,  b_k,       b_col,
                              c_row, c_col, m,    n, k,     relu, accumulate};
    if (g.m <= TILE_ROWS && g.m > 0 && g.b_col == 1 && g.c_col == 1 && g.n % PANEL == 0) {
        NAME(gemm_thin)(&g);
        return 0;
    }
    REAL *packed = mpidl_scratch(SCRATCH_GEMM, (size_t)(CHUNK * DEPTH) * sizeof(REAL));
    if (!packed) return MPIDL_NO_MEMORY;
    for (long k0 = 0; k0 < k || k0 == 0; k0 += DEPTH)
        for (long i = 0; i < g.m; i += CHUNK)
            NAME(gemm_chunk)(&g, i, g.m - i < CHUNK ? g.m - i : CHUNK, k0,
                             k - k0 < DEPTH ? k - k0 : DEPTH, packed);
    return 0;
}
#undef DEPTH
#undef CHUNK
