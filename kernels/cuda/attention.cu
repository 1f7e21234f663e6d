// Attention that never holds the score matrix (Dao et al., 2022). Layouts as in
// kernels/cpu/attention_impl.h. A block takes 8 queries (or keys) of one head, a warp each; keys
// and values (or queries and gradients) come through shared memory in tiles that all warps use. In
// a tile each lane takes the score of one row, so that nothing is shuffled for a product. A head
// has at most 256 elements, up to 8 a lane.
#define MAX_EACH 8
#define WARPS 8
#define TILE (16000 / (int)sizeof(ACC))
// The elements of a head that a lane holds: its e-th is number c.
#define FOR_MINE(e, c, dim) \
    for (int e = 0, c = threadIdx.x; e < MAX_EACH && c < (dim); e++, c += WARP)

// Blocks that take WARPS rows each.
__device__ inline i64 groups(i64 rows) {
    return (rows + WARPS - 1) / WARPS;
}

// Rows [first, first + count) of a matrix with `stride` to a tile with an odd row length, so that
// lanes hit different banks.
__device__ inline void load_tile(ACC *tile, const REAL *from, i64 first, int count, i64 stride,
                                 int dim) {
    for (int i = threadIdx.y * WARP + threadIdx.x; i < count * dim; i += WARPS * WARP)
        tile[i / dim * (dim | 1) + i % dim] = from[(first + i / dim) * stride + i % dim];
}

__device__ inline ACC row_product(const ACC *row, const ACC *other, int dim) {
    ACC sum = ACC(0);
    for (int c = 0; c < dim; c++) sum += row[c] * other[c];
    return sum;
}

extern "C" __global__ void attention_forward(const REAL *q, const REAL *k, const REAL *v, REAL *out,
                                             ACC *lse, const attention_geometry g, ACC scale,
                                             int causal) {
    __shared__ ACC keys[TILE], values[TILE], queries[WARPS][256];
    const i64 heads = g.heads, tq = g.tq, tk = g.tk, q_row = g.q_stride, kv_row = g.kv_stride;
    const int dim = (int)g.dim, most = TILE / (dim | 1), tile = most < WARP ? most : WARP,
              lane = threadIdx.x;
    ACC *query = queries[threadIdx.y];
    const i64 groups_each = groups(tq);
    for (i64 group = blockIdx.x; group < g.n * heads * groups_each; group += gridDim.x) {
        const i64 h = group / groups_each % heads, b = group / groups_each / heads,
                  first = group % groups_each * WARPS;
        const i64 t = first + threadIdx.y, last = first + WARPS < tq ? first + WARPS : tq;
        const i64 wanted = t >= tq  ? 0
                           : causal ? t + 1 + tk - tq
                                    : tk,
                  all = causal ? last + tk - tq : tk;
        const REAL *all_keys = k + b * tk * kv_row + h * dim,
                   *all_values = v + b * tk * kv_row + h * dim;
        ACC sum[MAX_EACH], top = ACC(0), total = ACC(0);
        for (int e = 0; e < MAX_EACH; e++) sum[e] = ACC(0);
        if (t < tq)
            FOR_MINE(e, c, dim) query[c] = q[(b * tq + t) * q_row + h * dim + c] * scale;
        for (i64 j = 0; j < all; j += tile) {
            const int count = (int)(all - j < tile ? all - j : tile);
            __syncthreads();
            load_tile(keys, all_keys, j, count, kv_row, dim);
            load_tile(values, all_values, j, count, kv_row, dim);
            __syncthreads();
            const bool seen = lane < count && j + lane < wanted;
            const ACC s = seen ? row_product(keys + lane * (dim | 1), query, dim) : ACC(0);
            const bool any = (j < wanted), before = (total > ACC(0));
            const ACC highest = warp_top(seen ? s : ACC(-1e30)), newer = !any ? top
                                                                         : before && top > highest
                                                                             ? top
                                                                             : highest;
            const ACC weight = seen ? exp(s - newer) : ACC(0),
                      shrink = before ? exp(top - newer) : ACC(1);
            total = total * shrink + all_lanes(weight);
            for (int e = 0; e < MAX_EACH; e++) sum[e] *= shrink;
            for (int r = 0; r < count; r++) {
                const ACC w = __shfl_sync(FULL, weight, r);
                FOR_MINE(e, c, dim) sum[e] += w * values[r * (dim | 1) + c];
            }
            top = newer;
        }
        if (t < tq) {
            FOR_MINE(e, c, dim)
                out[((b * tq + t) * heads + h) * dim + c] = wanted > 0 ? sum[e] / total : ACC(0);
            if (lane == 0) lse[(b * heads + h) * tq + t] = top + log(total);
        }
    }
}

// Gradients of the queries: one warp a query, tiles of keys and values.
extern "C" __global__ void attention_backward_q(const REAL *dout, const REAL *q, const REAL *k,
                                                const REAL *v, const REAL *out, const ACC *lse,
                                                REAL *dq, const attention_geometry g, ACC scale,
                                                int causal) {
    __shared__ ACC keys[TILE / 2], values[TILE / 2], queries[WARPS][256], grads[WARPS][256];
    const i64 heads = g.heads, tq = g.tq, tk = g.tk, q_row = g.q_stride, kv_row = g.kv_stride;
    const int dim = (int)g.dim, most = TILE / 2 / (dim | 1), tile = most < WARP ? most : WARP,
              lane = threadIdx.x;
    ACC *query = queries[threadIdx.y], *grad = grads[threadIdx.y];
    const i64 groups_each = groups(tq);
    for (i64 group = blockIdx.x; group < g.n * heads * groups_each; group += gridDim.x) {
        const i64 h = group / groups_each % heads, b = group / groups_each / heads,
                  first = group % groups_each * WARPS;
        const i64 t = first + threadIdx.y, last = first + WARPS < tq ? first + WARPS : tq,
                  at = ((b * tq + t) * heads + h) * dim;
        const i64 wanted = t >= tq  ? 0
                           : causal ? t + 1 + tk - tq
                                    : tk,
                  all = causal ? last + tk - tq : tk;
        const REAL *all_keys = k + b * tk * kv_row + h * dim,
                   *all_values = v + b * tk * kv_row + h * dim;
        ACC sum[MAX_EACH], along = ACC(0), shift = ACC(0);
        for (int e = 0; e < MAX_EACH; e++) sum[e] = ACC(0);
        if (t < tq) {
            FOR_MINE(e, c, dim) {
                query[c] = q[(b * tq + t) * q_row + h * dim + c] * scale;
                grad[c] = dout[at + c];
                along += grad[c] * out[at + c];
            }
            shift = lse[(b * heads + h) * tq + t];
        }
        along = all_lanes(along);
        for (i64 j = 0; j < all; j += tile) {
            const int count = (int)(all - j < tile ? all - j : tile);
            __syncthreads();
            load_tile(keys, all_keys, j, count, kv_row, dim);
            load_tile(values, all_values, j, count, kv_row, dim);
            __syncthreads();
            ACC d = ACC(0);
            if (lane < count && j + lane < wanted) {
                const ACC p = exp(row_product(keys + lane * (dim | 1), query, dim) - shift);
                d = p * (row_product(values + lane * (dim | 1), grad, dim) - along) * scale;
            }
            for (int r = 0; r < count; r++) {
                const ACC w = __shfl_sync(FULL, d, r);
                FOR_MINE(e, c, dim) sum[e] += w * keys[r * (dim | 1) + c];
            }
        }
        if (t < tq)
            FOR_MINE(e, c, dim) dq[(b * tq + t) * q_row + h * dim + c] = sum[e];
    }
}

// Gradients of keys and values: one warp a key, tiles of queries and output gradients.
extern "C" __global__ void attention_backward_kv(const REAL *dout, const REAL *q, const REAL *k,
                                                 const REAL *v, const REAL *out, const ACC *lse,
                                                 REAL *dk, REAL *dv, const attention_geometry g,
                                                 ACC scale, int causal) {
    __shared__ ACC queries[TILE / 2], grads[TILE / 2], along[WARP], mine_k[WARPS][256],
        mine_v[WARPS][256];
    const i64 heads = g.heads, tq = g.tq, tk = g.tk, q_row = g.q_stride, kv_row = g.kv_stride;
    const int dim = (int)g.dim, most = TILE / 2 / (dim | 1), tile = most < WARP ? most : WARP,
              lane = threadIdx.x;
    ACC *key = mine_k[threadIdx.y], *value = mine_v[threadIdx.y];
    const i64 groups_each = groups(tk);
    for (i64 group = blockIdx.x; group < g.n * heads * groups_each; group += gridDim.x) {
        const i64 h = group / groups_each % heads, b = group / groups_each / heads,
                  first = group % groups_each * WARPS;
        const i64 j = first + threadIdx.y, at = (b * tk + j) * kv_row + h * dim, rows = b * tq,
                  wide = heads * dim;
        const i64 earliest =
            causal ? first - (tk - tq) : 0; // the first query that sees any of the block's keys
        const REAL *all_queries = q + rows * q_row + h * dim,
                   *all_grads = dout + (rows * heads + h) * dim,
                   *all_outs = out + (rows * heads + h) * dim;
        ACC sum_k[MAX_EACH], sum_v[MAX_EACH];
        for (int e = 0; e < MAX_EACH; e++) sum_k[e] = sum_v[e] = ACC(0);
        if (j < tk)
            FOR_MINE(e, c, dim) {
                key[c] = k[at + c] * scale;
                value[c] = v[at + c];
            }
        for (i64 t = earliest < 0 ? 0 : earliest; t < tq; t += tile) {
            const int count = (int)(tq - t < tile ? tq - t : tile);
            __syncthreads();
            load_tile(queries, all_queries, t, count, q_row, dim);
            load_tile(grads, all_grads, t, count, wide, dim);
            for (int r = threadIdx.y; r < count; r += WARPS) {
                ACC part = ACC(0);
                FOR_MINE(e, c, dim)
                    part += all_grads[(t + r) * wide + c] * all_outs[(t + r) * wide + c];
                part = all_lanes(part);
                if (lane == 0) along[r] = part;
            }
            __syncthreads();
            ACC p = ACC(0), d = ACC(0);
            if (lane < count && j < tk && (!causal || t + lane >= j - (tk - tq))) {
                p = exp(row_product(queries + lane * (dim | 1), key, dim) -
                        lse[(b * heads + h) * tq + t + lane]);
                d = p * (row_product(grads + lane * (dim | 1), value, dim) - along[lane]) * scale;
            }
            for (int r = 0; r < count; r++) {
                const ACC wp = __shfl_sync(FULL, p, r), wd = __shfl_sync(FULL, d, r);
                FOR_MINE(e, c, dim) {
                    sum_v[e] += wp * grads[r * (dim | 1) + c];
                    sum_k[e] += wd * queries[r * (dim | 1) + c];
                }
            }
        }
        __syncthreads();
        if (j < tk)
            FOR_MINE(e, c, dim) {
                dk[at + c] = sum_k[e];
                dv[at + c] = sum_v[e];
            }
    }
}

// A number of a cache, or a byte that counts steps.
template <class T>
__device__ ACC cached_value(const T *held, const float *steps, i64 row, i64 dim, i64 i) {
    const ACC value = ACC(held[row * dim + i]);
    return steps ? value * ACC(steps[row]) : value;
}

// See attention_impl.h. One warp a token and head; a lane holds elements lane, lane + 32, ... of
// the head, of which there are at most 32 * HELD.
template <class T>
__device__ void attend(const REAL *q, const T *keys, const float *key_steps, const T *values,
                       const float *value_steps, REAL *out, const i64 *table, const i64 *owner,
                       const i64 *visible, i64 tokens, i64 heads, i64 dim, i64 columns, i64 block,
                       ACC scale) {
    enum { HELD = 8 };
    FOR_ROWS(job, tokens * heads) {
        const i64 t = job / heads, h = job % heads, lane = threadIdx.x;
        const i64 *blocks = table + owner[t] * columns;
        ACC top = ACC(0), sum = ACC(0), held[HELD];
        for (int j = 0; j < HELD; j++) held[j] = ACC(0);
        for (i64 c = 0; c < visible[t]; c++) {
            const i64 row = (blocks[c / block] * block + c % block) * heads + h;
            ACC dot = ACC(0);
            for (i64 i = lane; i < dim; i += WARP)
                dot += ACC(q[job * dim + i]) * cached_value(keys, key_steps, row, dim, i);
            const ACC score = all_lanes(dot) * scale,
                      larger = c == 0 || score > top ? score : top,
                      shrink = c == 0 ? ACC(0) : exp(top - larger), part = exp(score - larger);
            sum = sum * shrink + part;
            for (int j = 0; j < HELD; j++) {
                const i64 i = lane + j * WARP;
                const ACC value = i < dim ? cached_value(values, value_steps, row, dim, i) : ACC(0);
                held[j] = held[j] * shrink + part * value;
            }
            top = larger;
        }
        for (int j = 0; j < HELD; j++) {
            const i64 i = lane + j * WARP;
            if (i < dim) out[job * dim + i] = visible[t] ? held[j] / sum : ACC(0);
        }
    }
}

extern "C" __global__ void cached_attention(const REAL *q, const REAL *keys, const REAL *values,
                                            REAL *out, const i64 *table, const i64 *owner,
                                            const i64 *visible, i64 tokens, i64 slots, i64 heads,
                                            i64 dim, i64 rows, i64 columns, i64 block, ACC scale) {
    const float *none = nullptr;
    attend(q, keys, none, values, none, out, table, owner, visible, tokens, heads, dim, columns,
           block, scale);
}

extern "C" __global__ void cached_attention_int8(const REAL *q, const i8 *keys,
                                                 const float *key_steps, const i8 *values,
                                                 const float *value_steps, REAL *out,
                                                 const i64 *table, const i64 *owner,
                                                 const i64 *visible, i64 tokens, i64 slots,
                                                 i64 heads, i64 dim, i64 rows, i64 columns,
                                                 i64 block, ACC scale) {
    attend(q, keys, key_steps, values, value_steps, out, table, owner, visible, tokens, heads, dim,
           columns, block, scale);
}

// Bytes of one head of a token, and the value of one step; see attention_impl.h.
__device__ inline void to_bytes(const REAL *x, i8 *to, float *step, i64 dim) {
    float peak = 0, wrong = 0;
    for (i64 i = threadIdx.x; i < dim; i += WARP) {
        const float size = fabsf(float(ACC(x[i])));
        if (!(size <= 3.4028234e38f)) wrong = 1;
        peak = fmaxf(peak, size);
    }
    for (int mask = WARP / 2; mask; mask /= 2) {
        peak = fmaxf(peak, __shfl_xor_sync(FULL, peak, mask));
        wrong = fmaxf(wrong, __shfl_xor_sync(FULL, wrong, mask));
    }
    const bool bad = wrong > 0, zero = !(peak > 1e-36f);
    const float inverse = bad || zero ? 0.0f : 127.0f / peak;
    for (i64 i = threadIdx.x; i < dim; i += WARP)
        to[i] = i8(bad ? 0 : int(rintf(float(ACC(x[i])) * inverse)));
    if (threadIdx.x == 0) *step = bad ? nanf("") : zero ? 0.0f : peak / 127.0f;
}

extern "C" __global__ void cache_int8(const REAL *x, const i64 *at, i8 *keys, float *key_steps,
                                      i8 *values, float *value_steps, i64 tokens, i64 slots,
                                      i64 heads, i64 dim) {
    FOR_ROWS(job, tokens * heads) {
        const i64 t = job / heads, h = job % heads, to = at[t] * heads + h;
        const REAL *key = x + ((3 * t + 1) * heads + h) * dim;
        to_bytes(key, keys + to * dim, key_steps + to, dim);
        to_bytes(key + heads * dim, values + to * dim, value_steps + to, dim);
    }
}
