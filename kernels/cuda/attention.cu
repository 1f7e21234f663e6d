// Attention that never holds the score matrix (Dao et al., 2022): one warp a query, keys 32 at a time, a running softmax. Layouts as in
// kernels/cpu/attention_impl.h. A head has at most 256 elements, up to 8 a lane.
#define MAX_EACH 8
#define FULL 0xffffffffu
#define ALL_LANES(value) __shfl_sync(FULL, warp_sum(value), 0)

// The score of query x (spread over lanes) with the key at k, on every lane.
__device__ inline REAL score(const REAL *x, const REAL *k, int dim) {
    REAL sum = REAL(0);
    for (int e = 0, c = threadIdx.x; e < MAX_EACH && c < dim; e++, c += WARP) sum += x[e] * k[c];
    return ALL_LANES(sum);
}

#define FOR_QUERIES(row, count) \
    for (i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y; row < (count); row += (i64)gridDim.x * blockDim.y)
#define FOR_MINE(e, c) for (int e = 0, c = threadIdx.x; e < MAX_EACH && c < dim; e++, c += WARP)

extern "C" __global__ void attention_forward(const REAL *q, const REAL *k, const REAL *v, REAL *out, REAL *lse, i64 batch, i64 heads, i64 tq,
                                             i64 tk, i64 dims, i64 q_row, i64 kv_row, REAL scale, int causal) {
    const int dim = (int)dims;
    FOR_QUERIES(row, batch * heads * tq) {
        const i64 t = row % tq, h = row / tq % heads, b = row / tq / heads;
        const i64 wanted = causal ? t + 1 + tk - tq : tk, seen = wanted < 0 ? 0 : wanted;
        const REAL *query = q + (b * tq + t) * q_row + h * dim, *keys = k + b * tk * kv_row + h * dim, *values = v + b * tk * kv_row + h * dim;
        REAL mine[MAX_EACH], sum[MAX_EACH], top = REAL(0), total = REAL(0);
        for (int e = 0; e < MAX_EACH; e++) mine[e] = sum[e] = REAL(0);
        FOR_MINE(e, c) mine[e] = query[c] * scale;
        for (i64 j = 0; j < seen; j++) {
            const REAL s = score(mine, keys + j * kv_row, dim);
            const REAL newer = j == 0 || s > top ? s : top, shrink = j == 0 ? REAL(0) : exp(top - newer), weight = exp(s - newer);
            total = total * shrink + weight;
            FOR_MINE(e, c) sum[e] = sum[e] * shrink + weight * values[j * kv_row + c];
            top = newer;
        }
        FOR_MINE(e, c) out[((b * tq + t) * heads + h) * dim + c] = total > REAL(0) ? sum[e] / total : REAL(0);
        if (threadIdx.x == 0) lse[(b * heads + h) * tq + t] = top + log(total);
    }
}

// Gradients of the queries: one warp a query.
extern "C" __global__ void attention_backward_q(const REAL *dout, const REAL *q, const REAL *k, const REAL *v, const REAL *out, const REAL *lse,
                                                REAL *dq, i64 batch, i64 heads, i64 tq, i64 tk, i64 dims, i64 q_row, i64 kv_row, REAL scale,
                                                int causal) {
    const int dim = (int)dims;
    FOR_QUERIES(row, batch * heads * tq) {
        const i64 t = row % tq, h = row / tq % heads, b = row / tq / heads;
        const i64 wanted = causal ? t + 1 + tk - tq : tk, seen = wanted < 0 ? 0 : wanted, at = ((b * tq + t) * heads + h) * dim;
        const REAL *keys = k + b * tk * kv_row + h * dim, *values = v + b * tk * kv_row + h * dim;
        REAL mine[MAX_EACH], grad[MAX_EACH], sum[MAX_EACH], along = REAL(0);
        for (int e = 0; e < MAX_EACH; e++) mine[e] = grad[e] = sum[e] = REAL(0);
        FOR_MINE(e, c) {
            mine[e] = q[(b * tq + t) * q_row + h * dim + c] * scale;
            grad[e] = dout[at + c];
            along += grad[e] * out[at + c];
        }
        along = ALL_LANES(along);
        const REAL shift = lse[(b * heads + h) * tq + t];
        for (i64 j = 0; j < seen; j++) {
            const REAL p = exp(score(mine, keys + j * kv_row, dim) - shift);
            const REAL d = p * (score(grad, values + j * kv_row, dim) - along) * scale;
            FOR_MINE(e, c) sum[e] += d * keys[j * kv_row + c];
        }
        FOR_MINE(e, c) dq[(b * tq + t) * q_row + h * dim + c] = sum[e];
    }
}

// Gradients of keys and values: one warp a key.
extern "C" __global__ void attention_backward_kv(const REAL *dout, const REAL *q, const REAL *k, const REAL *v, const REAL *out,
                                                 const REAL *lse, REAL *dk, REAL *dv, i64 batch, i64 heads, i64 tq, i64 tk, i64 dims, i64 q_row,
                                                 i64 kv_row, REAL scale, int causal) {
    const int dim = (int)dims;
    FOR_QUERIES(row, batch * heads * tk) {
        const i64 j = row % tk, h = row / tk % heads, b = row / tk / heads, at = (b * tk + j) * kv_row + h * dim;
        const i64 early = causal ? j - (tk - tq) : 0;
        REAL key[MAX_EACH], value[MAX_EACH], sum_k[MAX_EACH], sum_v[MAX_EACH];
        for (int e = 0; e < MAX_EACH; e++) key[e] = value[e] = sum_k[e] = sum_v[e] = REAL(0);
        FOR_MINE(e, c) key[e] = k[at + c] * scale, value[e] = v[at + c];
        for (i64 t = early < 0 ? 0 : early; t < tq; t++) {
            const REAL *query = q + (b * tq + t) * q_row + h * dim, *grad = dout + ((b * tq + t) * heads + h) * dim;
            const REAL *y = out + ((b * tq + t) * heads + h) * dim;
            REAL along = REAL(0);
            FOR_MINE(e, c) along += grad[c] * y[c];
            along = ALL_LANES(along);
            const REAL p = exp(score(key, query, dim) - lse[(b * heads + h) * tq + t]);
            const REAL d = p * (score(value, grad, dim) - along) * scale;
            FOR_MINE(e, c) sum_v[e] += p * grad[c], sum_k[e] += d * query[c];
        }
        FOR_MINE(e, c) dk[at + c] = sum_k[e], dv[at + c] = sum_v[e];
    }
}
