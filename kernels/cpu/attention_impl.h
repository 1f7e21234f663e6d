/* Scaled dot-product attention (Vaswani et al., 2017), head by head and by blocks of queries: the
 * scores of one block exist at a time. Queries lie at q[(b * tq + t) * q_row + h * dim], keys and
 * values at [(b * tk + t) * kv_row + h * dim], outputs and their gradients at [((b * tq + t) *
 * heads + h) * dim]. causal: query t sees keys up to t + tk - tq.
 */
#define QUERIES 32

/* Where head `head` of sample `sample` begins in an array of `tokens` tokens a sample. */
static inline long NAME(head_at)(long sample, long head, long tokens, long row, long dim) {
    return sample * tokens * row + head * dim;
}

/* scores (count, seen) of queries [first, first + count); unseen ones are -infinity. Returns how
 * many keys the block sees. */
static long NAME(scores)(const REAL *q, const REAL *k, REAL *scores, long first, long count,
                         const attention_geometry *g, double scale, int causal) {
    const long ahead = g->tk - g->tq, last = first + count + ahead;
    const long seen = !causal || last > g->tk ? g->tk : last < 0 ? 0 : last;
    if (NAME(gemm)(q + first * g->q_stride, g->q_stride, 1, k, 1, g->kv_stride, scores, seen, 1,
                   NULL, count, seen, g->dim, 0, 0))
        return -1;
    for (long i = 0; i < count * seen; i++) scores[i] *= (REAL)scale;
    if (!causal) return seen;
    for (long r = 0; r < count; r++) {
        const long hidden = first + r + ahead + 1;
        for (long c = hidden < 0 ? 0 : hidden; c < seen; c++)
            scores[r * seen + c] = (REAL)-INFINITY;
    }
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
        const long at_q = NAME(head_at)(b, h, tq, q_row, dim);
        const long at_kv = NAME(head_at)(b, h, tk, kv_row, dim);
        const long at_out = NAME(head_at)(b, h, tq, heads * dim, dim);
        REAL *s = mpidl_scratch(SCRATCH_OTHER, (size_t)(QUERIES * tk + 1) * sizeof(REAL));
        if (!s) {
            failed = 1;
            continue;
        }
        for (long first = 0; first < tq; first += QUERIES) {
            const long count = tq - first < QUERIES ? tq - first : QUERIES;
            const long seen = NAME(scores)(q + at_q, k + at_kv, s, first, count, g, scale, causal);
            REAL *to = out + at_out + first * heads * dim;
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
            failed |= NAME(gemm)(s, seen, 1, v + at_kv, kv_row, 1, to, heads * dim, 1, NULL, count,
                                 dim, seen, 0, 0);
        }
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
        const long at_q = NAME(head_at)(b, h, tq, q_row, dim);
        const long at_kv = NAME(head_at)(b, h, tk, kv_row, dim);
        const long at_out = NAME(head_at)(b, h, tq, o_row, dim);
        REAL *p = mpidl_scratch(SCRATCH_OTHER, (size_t)(2 * QUERIES * tk + 1) * sizeof(REAL));
        if (!p) {
            failed = 1;
            continue;
        }
        REAL *d = p + QUERIES * tk;
        for (long t = 0; t < tk; t++) {
            memset(dk + at_kv + t * kv_row, 0, (size_t)dim * sizeof(REAL));
            memset(dv + at_kv + t * kv_row, 0, (size_t)dim * sizeof(REAL));
        }
        for (long first = 0; first < tq; first += QUERIES) {
            const long count = tq - first < QUERIES ? tq - first : QUERIES;
            const long seen = NAME(scores)(q + at_q, k + at_kv, p, first, count, g, scale, causal);
            const REAL *grad = dout + at_out + first * o_row, *y = out + at_out + first * o_row;
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
            failed |= NAME(gemm)(p, 1, seen, grad, o_row, 1, dv + at_kv, kv_row, 1, NULL, seen, dim,
                                 count, 0, 1);
            failed |= NAME(gemm)(grad, o_row, 1, v + at_kv, 1, kv_row, d, seen, 1, NULL, count,
                                 seen, dim, 0, 0);
            for (long r = 0; r < count; r++) {
                REAL along = 0;
#pragma omp simd reduction(+ : along)
                for (long c = 0; c < dim; c++) along += grad[r * o_row + c] * y[r * o_row + c];
                for (long c = 0; c < seen; c++)
                    d[r * seen + c] = p[r * seen + c] * (d[r * seen + c] - along) * (REAL)scale;
            }
            failed |= NAME(gemm)(d, seen, 1, k + at_kv, kv_row, 1, dq + at_q + first * q_row, q_row,
                                 1, NULL, count, dim, seen, 0, 0);
            failed |= NAME(gemm)(d, 1, seen, q + at_q + first * q_row, q_row, 1, dk + at_kv, kv_row,
                                 1, NULL, seen, dim, count, 0, 1);
        }
    }
    return failed ? MPIDL_NO_MEMORY : 0;
}
#undef QUERIES

/* Attention of tokens, each over the first visible[t] tokens of its own sequence, whose keys and
 * values lie in blocks of a cache: token c of sequence s in row table[s * columns + c / block] *
 * block + c % block, of heads * dim numbers. A token that sees none gives zeros. A result depends
 * on its own sequence alone. Either keys and values are given, or bytes of both with the value of
 * one step for each row and head. */
typedef struct {
    const REAL *keys, *values;
    const int8_t *key_bytes, *value_bytes;
    const float *key_steps, *value_steps;
    const long *table;
    long columns, block;
} NAME(cache);

ALWAYS_INLINE int NAME(attend)(const NAME(cache) * cache, const REAL *q, REAL *out,
                               const long *owner, const long *visible, long tokens, long heads,
                               long dim, REAL scale) {
    int failed = 0;
    const long block = cache->block;
    PARALLEL_FOR(tokens *heads *dim *cache->columns *block)
    for (long job = 0; job < tokens * heads; job++) {
        const long t = job / heads, h = job % heads, seen = visible[t];
        const long *blocks = cache->table + owner[t] * cache->columns;
        const REAL *query = q + job * dim;
        REAL *to = out + job * dim, top = (REAL)-INFINITY, sum = 0;
        REAL *s = mpidl_scratch(SCRATCH_OTHER, (size_t)(seen + 1) * sizeof(REAL));
        if (!s) {
            failed = MPIDL_NO_MEMORY;
            continue;
        }
        for (long i = 0; i < dim; i++) to[i] = 0;
        for (long c = 0; c < seen; c++) {
            const long at = (blocks[c / block] * block + c % block) * heads + h;
            REAL dot = 0;
            if (cache->key_bytes) {
                const int8_t *key = cache->key_bytes + at * dim;
#pragma omp simd reduction(+ : dot)
                for (long i = 0; i < dim; i++) dot += query[i] * (REAL)key[i];
                dot *= (REAL)cache->key_steps[at];
            } else {
                const REAL *key = cache->keys + at * dim;
#pragma omp simd reduction(+ : dot)
                for (long i = 0; i < dim; i++) dot += query[i] * key[i];
            }
            s[c] = dot * scale;
            top = s[c] > top ? s[c] : top;
        }
        for (long c = 0; c < seen; c++) s[c] = NAME(fast_exp)(s[c] - top);
        for (long c = 0; c < seen; c++) sum += s[c];
        for (long c = 0; c < seen; c++) {
            const long at = (blocks[c / block] * block + c % block) * heads + h;
            const REAL part = s[c] / sum;
            if (cache->value_bytes) {
                const int8_t *value = cache->value_bytes + at * dim;
                const REAL step = part * (REAL)cache->value_steps[at];
                for (long i = 0; i < dim; i++) to[i] += step * (REAL)value[i];
            } else {
                const REAL *value = cache->values + at * dim;
                for (long i = 0; i < dim; i++) to[i] += part * value[i];
            }
        }
    }
    return failed;
}

int NAME(cached_attention)(const REAL *q, const REAL *keys, const REAL *values, REAL *out,
                           const long *table, const long *owner, const long *visible, long tokens,
                           long slots, long heads, long dim, long rows, long columns, long block,
                           double scale) {
    (void)slots, (void)rows;
    const NAME(cache) cache = {keys, values, 0, 0, 0, 0, table, columns, block};
    return NAME(attend)(&cache, q, out, owner, visible, tokens, heads, dim, (REAL)scale);
}

int NAME(cached_attention_int8)(const REAL *q, const int8_t *keys, const float *key_steps,
                                const int8_t *values, const float *value_steps, REAL *out,
                                const long *table, const long *owner, const long *visible,
                                long tokens, long slots, long heads, long dim, long rows,
                                long columns, long block, double scale) {
    (void)slots, (void)rows;
    const NAME(cache) cache = {0, 0, keys, values, key_steps, value_steps, table, columns, block};
    return NAME(attend)(&cache, q, out, owner, visible, tokens, heads, dim, (REAL)scale);
}

/* Bytes of one head of a token, and the value of one step; NaN where a number is not finite. */
static float NAME(to_bytes)(const REAL *x, int8_t *to, long dim) {
    float peak = 0;
    int bad = 0;
    for (long i = 0; i < dim; i++) {
        const float size = fabsf((float)x[i]);
        bad |= !(size <= 3.4028234e38f);
        peak = size > peak ? size : peak;
    }
    const float inverse = bad || !(peak > 1e-36f) ? 0 : 127.0f / peak;
    for (long i = 0; i < dim; i++)
        to[i] = (int8_t)(bad ? 0 : (int32_t)__builtin_rintf((float)x[i] * inverse));
    return bad ? NAN : inverse > 0 ? peak / 127.0f : 0;
}

/* Put keys and values of tokens into rows at[t] of a cache of bytes. x (tokens, 3, heads, dim) has
 * queries, keys and values. */
int NAME(cache_int8)(const REAL *x, const long *at, int8_t *keys, float *key_steps, int8_t *values,
                     float *value_steps, long tokens, long slots, long heads, long dim) {
    (void)slots;
    PARALLEL_FOR(tokens *heads *dim)
    for (long job = 0; job < tokens * heads; job++) {
        const long t = job / heads, h = job % heads, to = at[t] * heads + h;
        const REAL *key = x + ((3 * t + 1) * heads + h) * dim;
        key_steps[to] = NAME(to_bytes)(key, keys + to * dim, dim);
        value_steps[to] = NAME(to_bytes)(key + heads * dim, values + to * dim, dim);
    }
    return 0;
}
