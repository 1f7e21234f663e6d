/* The register tile of all matrix products: TILE_ROWS rows times one panel of columns, for an
 * element type REAL. Every element is summed over k in ascending order by one accumulator, so that
 * results depend neither on blocking nor on the other extents. Included by each *_impl.h that
 * multiplies, which undefines LANES and PANEL at its end.
 */
#define LANES ((long)(VECTOR_BYTES / sizeof(REAL)))
#define PANEL (TILE_VECTORS * LANES)
#define PANELS(columns) (((columns) + PANEL - 1) / PANEL)

/* A has strides; the rows of the panel B and of the tile are contiguous. first: the tile starts
 * from zero, not from what is there. */
ALWAYS_INLINE void NAME(gemm_tile)(const int rows, const REAL *a, long a_row, long a_k,
                                   const REAL *b, long b_k, REAL *tile, long tile_row, long depth,
                                   int first) {
    VEC acc[TILE_ROWS][TILE_VECTORS];
    const VEC zero = {0};
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECTORS; v++)
            acc[r][v] = first ? zero : *(const VEC *)(tile + r * tile_row + v * LANES);
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
        for (int v = 0; v < TILE_VECTORS; v++)
            *(VEC *)(tile + r * tile_row + v * LANES) = acc[r][v];
}
