/* What families call of each other, for an element type REAL. */
int NAME(gemm)(const REAL *a, long a_row, long a_k, const REAL *b, long b_k, long b_col, REAL *c,
               long c_row, long c_col, const REAL *bias, long m, long n, long k, int relu,
               int accumulate);
int NAME(winograd_fits)(const conv_geometry *g, long pad, long out_height, long out_width);
int NAME(winograd_forward)(const REAL *in, const REAL *w, const REAL *bias, REAL *out,
                           const conv_geometry *g, int relu);
int NAME(winograd_backward_input)(const REAL *dout, const REAL *w, REAL *din,
                                  const conv_geometry *g);
int NAME(winograd_backward_weights)(const REAL *in, const REAL *dout, REAL *dw,
                                    const conv_geometry *g);
