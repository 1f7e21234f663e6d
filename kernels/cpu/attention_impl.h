/* Scaled dot-product attention (Vaswani et al., 2017), head by head and by blocks of queries: the
 * scores of one block exist at a time. Queries lie at q[(b * tq + t) * q_row + h * dim], keys and
 * values at [(b * tk + t) * kv_row + h * dim], outputs and their gradients at [((b * tq + t) *
 * heads + h) * dim]. causal: query t sees keys up to t + tk - tq.
 */
#define QUERIES 32
#define HEAD(base, tokens, row) ((base) + (b) * (tokens) * (row) + (h) * dim)

/* scores (count, seen) of queries [first, first + count); unseen ones are -infinity. Returns how
 * many keys the block sees. */
static long NAME(scores)(const REAL *q, const REAL *k, REAL *scores, long first, long count,
                         long tq, long tk, long dim, long q_row, long kv_row, double scale,
                         int causal) {
    const long ahead = tk - tq, wanted = causal ? first + count + ahead : tk,
               seen = wanted < 0    ? 0
                      : wanted > tk ? tk
                                    : wanted;
    if (NAME(gemm)(q + first * q_row, q_row, 1, k, 1, kv_row, scores, seen, 1, NULL, count, seen,
                   dim, 0, 0))
        return -1;
    for (long i = 0; i < count * seen; i++) scores[i] *= (REAL)scale;
    for (long r = 0; causal && r < count; r++)
        for (long c = first + r + ahead + 1 < 0 ? 0 : first + r + ahead + 1; c < seen; c++)
            scores[r * seen + c] = (REAL)-INFINITY;
    return seen;
}

/* out, and lse (batch, heads, tq): the logarithm of the sum of exponentials of each query's scores.
 */
int NAME(attention_forward)(const REAL *q, const REAL *k, const REAL *v, REAL *out, REAL *lse,
                            const attention_geometry *g, double scale, int causal) {
    const long batch = g->n, heads = g->heads, tq = g->tq, tk = g->tk, dim = g->dim,
               q_row = g->q_stride, kv_row = g->kv_stride;
    int failed = 0;
    PARALLEL_FOR(batch * heads * tq * tk * dim)
    for (long job = 0; job < batch * heads; job++) {
        const long b = job / heads, h = job % heads;
        REAL *s = mpidl_scratch(SCRATCH_OTHER, (size_t)(QUERIES * tk + 1) * sizeof(REAL));
        for (long first = 0; s && first < tq; first += QUERIES) {
            const long count = tq - first < QUERIES ? tq - first : QUERIES;
            const long seen = NAME(scores)(HEAD(q, tq, q_row), HEAD(k, tk, kv_row), s, first, count,
                                           tq, tk, dim, q_row, kv_row, scale, causal);
            REAL *to = HEAD(out, tq, heads * dim) + first * heads * dim;
            if (seen < 0) {
                failed = 1;
                break;
            }
            for (long r = 0; r < count; r++) {
                REAL *row = s + r * seen, top = (REAL)-INFINITY, sum = 0;
                for (long c = 0; c < seen; c++) top = row[c] > top ? row[c] : top;
                top = top == (REAL)-INFINITY ? 0 : top;
#pragma omp simd reduction(+ : sum)
                for (long c = 0; c < seen; c++)
                    sum += row[c] = row[c] == (REAL)-INFINITY ? 0 : NAME(fast_exp)(row[c] - top);
                const REAL inverse = sum > 0 ? 1 / sum : 0;
                for (long c = 0; c < seen; c++) row[c] *= inverse;
                lse[(b * heads + h) * tq + first + r] = top + (REAL)log((double)sum);
            }
            failed |= NAME(gemm)(s, seen, 1, HEAD(v, tk, kv_row), kv_row, 1, to, heads * dim, 1,
                                 NULL, count, dim, seen, 0, 0);
        }
        failed |= !s;
    }
    return failed ? MPIDL_NO_MEMORY : 0;
}

/* Gradients of q, k and v, with the layouts of q, k and v; overwritten. */
int NAME(attention_backward)(const REAL *dout, const REAL *q, const REAL *k, const REAL *v,
                             const REAL *out, const REAL *lse, REAL *dq, REAL *dk, REAL *dv,
                             const attention_geometry *g, double scale, int causal) {
    const long batch = g->n, heads = g->heads, tq = g->tq, tk = g->tk, dim = g->dim,
               q_row = g->q_stride, kv_row = g->kv_stride;
    int failed = 0;
    PARALLEL_FOR(batch * heads * tq * tk * dim)
    for (long job = 0; job < batch * heads; job++) {
        const long b = job / heads, h = job % heads, o_row = heads * dim;
        REAL *p = mpidl_scratch(SCRATCH_OTHER, (size_t)(2 * QUERIES * tk + 1) * sizeof(REAL));
        if (!p) {
            failed = 1;
            continue;
        }
        REAL *d = p + QUERIES * tk;
        for (long t = 0; t < tk; t++) {
            memset(HEAD(dk, tk, kv_row) + t * kv_row, 0, (size_t)dim * sizeof(REAL));
            memset(HEAD(dv, tk, kv_row) + t * kv_row, 0, (size_t)dim * sizeof(REAL));
        }
        for (long first = 0; first < tq; first += QUERIES) {
            const long count = tq - first < QUERIES ? tq - first : QUERIES;
            const long seen = NAME(scores)(HEAD(q, tq, q_row), HEAD(k, tk, kv_row), p, first, count,
                                           tq, tk, dim, q_row, kv_row, scale, causal);
            const REAL *grad = HEAD(dout, tq, o_row) + first * o_row,
                       *y = HEAD(out, tq, o_row) + first * o_row;
            if (seen < 0) {
                failed = 1;
                break;
            }
            for (long r = 0; r < count; r++) {
                const REAL shift = lse[(b * heads + h) * tq + first + r];
                for (long c = 0; c < seen; c++) {
                    const REAL e = p[r * seen + c];
                    p[r * seen + c] = e == (REAL)-INFINITY ? 0 : NAME(fast_exp)(e - shift);
                }
            }
            failed |= NAME(gemm)(p, 1, seen, grad, o_row, 1, HEAD(dv, tk, kv_row), kv_row, 1, NULL,
                                 seen, dim, count, 0, 1);
            failed |= NAME(gemm)(grad, o_row, 1, HEAD(v, tk, kv_row), 1, kv_row, d, seen, 1, NULL,
                                 count, seen, dim, 0, 0);
            for (long r = 0; r < count; r++) {
                REAL along = 0;
#pragma omp simd reduction(+ : along)
                for (long c = 0; c < dim; c++) along += grad[r * o_row + c] * y[r * o_row + c];
                for (long c = 0; c < seen; c++)
                    d[r * seen + c] = p[r * seen + c] * (d[r * seen + c] - along) * (REAL)scale;
            }
            failed |= NAME(gemm)(d, seen, 1, HEAD(k, tk, kv_row), kv_row, 1,
                                 HEAD(dq, tq, q_row) + first * q_row, q_row, 1, NULL, count, dim,
                                 seen, 0, 0);
            failed |= NAME(gemm)(d, 1, seen, HEAD(q, tq, q_row) + first * q_row, q_row, 1,
                                 HEAD(dk, tk, kv_row), kv_row, 1, NULL, seen, dim, count, 0, 1);
        }
    }
    return failed ? MPIDL_NO_MEMORY : 0;
}
#undef QUERIES
#undef HEAD
