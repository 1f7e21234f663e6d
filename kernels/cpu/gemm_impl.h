/* Matrix products of dense layers: few rows (a batch), many columns. Nothing is packed but B where its rows are not a whole
 * number of panels. Every element of C is summed over k in ascending order by one accumulator, so that the result does not
 * depend on the other extents, on blocking, or on threads: a batch computed in parts gives the same bits.
 */
#define LANES ((long)(VECTOR_BYTES / sizeof(REAL)))
#define PANEL (TILE_VECTORS * LANES)
#define DEPTH 256 /* a panel of B of this depth stays in the first-level cache */
#define SMALL (24 << 10)

/* A tile of C: `rows` rows times one panel, over `depth` values of k. A has strides; the rows of B and of the tile are
 * contiguous. first: the tile starts from zero, not from what is there. */
ALWAYS_INLINE void NAME(gemm_tile)(const int rows, const REAL *a, long a_row, long a_k, const REAL *b, long b_k, REAL *tile, long tile_row,
                                   long depth, int first) {
    VEC acc[TILE_ROWS][TILE_VECTORS];
    const VEC zero = {0};
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECTORS; v++) acc[r][v] = first ? zero : *(const VEC *)(tile + r * tile_row + v * LANES);
    for (long k = 0; k < depth; k++, a += a_k, b += b_k) {
        VEC w[TILE_VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECTORS; v++) w[v] = *(const VEC *)(b + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const REAL x = a[r * a_row];
#pragma GCC unroll 2
            for (int v = 0; v < TILE_VECTORS; v++) acc[r][v] += x * w[v];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECTORS; v++) *(VEC *)(tile + r * tile_row + v * LANES) = acc[r][v];
}

typedef struct {
    const REAL *a, *b;
    REAL *c;
    long a_row, a_k, b_k, c_row, c_col;
} NAME(gemm_t);

/* Rows [i, i + rows) and columns [j, j + cols) of C, over k in [k0, k0 + depth). */
static void NAME(gemm_block)(const NAME(gemm_t) * g, long i, long rows, long j, long cols, long k0, long depth) {
    REAL scratch[TILE_ROWS * PANEL] __attribute__((aligned(64)));
    const REAL *a = g->a + i * g->a_row + k0 * g->a_k, *b = g->b + k0 * g->b_k + j;
    REAL *out = g->c + i * g->c_row + j * g->c_col;
    const int direct = g->c_col == 1 && cols == PANEL, first = k0 == 0;
    REAL *tile = direct ? out : scratch;
    const long tile_row = direct ? g->c_row : PANEL;
    if (!direct) {
        memset(scratch, 0, sizeof scratch);
        if (!first)
            for (long q = 0; q < cols; q++)
                for (long r = 0; r < rows; r++) scratch[r * PANEL + q] = out[r * g->c_row + q * g->c_col];
    }
#define CALL(R) NAME(gemm_tile)(R, a, g->a_row, g->a_k, b, g->b_k, tile, tile_row, depth, first)
    FOR_ROWS(rows, CALL)
#undef CALL
    if (!direct)
        for (long q = 0; q < cols; q++)
            for (long r = 0; r < rows; r++) out[r * g->c_row + q * g->c_col] = scratch[r * PANEL + q];
}

/* C (m, n) = A (m, k) B (k, n), overwritten. A and C have any strides, in elements; B has contiguous rows, b_k apart, unless
 * b_col is not 1, or n is not a whole number of panels: then it is copied first. */
int NAME(gemm)(const REAL *a, long a_row, long a_k, const REAL *b, long b_k, long b_col, REAL *c, long c_row, long c_col, long m, long n,
               long k) {
    const long wide = (n + PANEL - 1) / PANEL * PANEL;
    REAL *packed = NULL;
    if (b_col != 1 || wide != n) {
        packed = aligned_alloc(64, ((size_t)(wide * (k ? k : 1)) * sizeof(REAL) + 63) & ~(size_t)63);
        if (!packed) return MPIDL_NO_MEMORY;
        for (long p = 0; p < k; p++) {
            for (long j = 0; j < n; j++) packed[p * wide + j] = b[p * b_k + j * b_col];
            for (long j = n; j < wide; j++) packed[p * wide + j] = 0;
        }
        b = packed, b_k = wide;
    }
    const NAME(gemm_t) g = {a, b, c, a_row, a_k, b_k, c_row, c_col};
    const long tiles = (m + TILE_ROWS - 1) / TILE_ROWS, panels = wide / PANEL;
    for (long k0 = 0; k0 < k || k0 == 0; k0 += DEPTH) {
        const long depth = k - k0 < DEPTH ? k - k0 : DEPTH;
        const int small = depth * wide * (long)sizeof(REAL) <= SMALL; /* all of B stays in the cache: go along the rows of C */
        PARALLEL_FOR(m * n * depth / 16)
        for (long s = 0; s < tiles * panels; s++) {
            const long t = small ? s / panels : s % tiles, j = (small ? s % panels : s / tiles) * PANEL;
            const long i = t * m / tiles, rows = (t + 1) * m / tiles - i;
            NAME(gemm_block)(&g, i, rows, j, n - j < PANEL ? n - j : PANEL, k0, depth);
        }
    }
    free(packed);
    return 0;
}
#undef LANES
#undef PANEL
#undef DEPTH
#undef SMALL
