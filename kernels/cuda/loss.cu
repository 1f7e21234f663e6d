// Softmax and cross-entropy, fused. One warp a row; blocks of (32, rows per block).

// The largest of a row and its first place, on every lane.
template <class T>
__device__ inline ACC row_top(const T *z, i64 classes, int lane, i64 &best) {
    ACC top = z[0];
    best = 0;
    for (i64 c = lane; c < classes; c += WARP)
        if (ACC(z[c]) > top || (ACC(z[c]) == top && c < best)) {
            top = z[c];
            best = c;
        }
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        const ACC other = __shfl_down_sync(FULL, top, offset);
        const i64 place = __shfl_down_sync(FULL, best, offset);
        if (other > top || (other == top && place < best)) {
            top = other;
            best = place;
        }
    }
    best = __shfl_sync(FULL, best, 0);
    return __shfl_sync(FULL, top, 0);
}

extern "C" __global__ void softmax_cross_entropy(const REAL *logits, const i64 *labels, ACC *loss,
                                                 REAL *dlogits, u8 *hit, i64 rows, i64 classes,
                                                 ACC scale, ACC smoothing) {
    const int lane = threadIdx.x;
    FOR_ROWS(row, rows) {
        const REAL *z = logits + row * classes;
        REAL *d = dlogits + row * classes;
        i64 best;
        const ACC top = row_top(z, classes, lane, best);
        ACC sum = ACC(0);
        for (i64 c = lane; c < classes; c += WARP) sum += exp(z[c] - top);
        sum = __shfl_sync(FULL, warp_sum(sum), 0);
        const i64 label = labels[row];
        const ACC spread = smoothing / ACC(classes), counted = label < 0 ? ACC(0) : ACC(1);
        ACC all = ACC(0);
        for (i64 c = lane; c < classes; c += WARP) {
            all += z[c] - top;
            d[c] = (exp(z[c] - top) / sum - spread - (c == label ? ACC(1) - smoothing : ACC(0))) *
                   scale * counted;
        }
        all = warp_sum(all);
        if (lane == 0) {
            loss[row] = label < 0
                            ? ACC(0)
                            : log(sum) - (ACC(1) - smoothing) * (z[label] - top) - spread * all;
            hit[row] = best == label;
        }
    }
}

// The same with a share of each class in a row's target.
extern "C" __global__ void softmax_cross_entropy_shares(const REAL *logits, const ACC *shares,
                                                        ACC *loss, REAL *dlogits, u8 *hit, i64 rows,
                                                        i64 classes, ACC scale, ACC smoothing) {
    const int lane = threadIdx.x;
    FOR_ROWS(row, rows) {
        const REAL *z = logits + row * classes;
        const ACC *t = shares + row * classes;
        REAL *d = dlogits + row * classes;
        i64 best, most;
        const ACC top = row_top(z, classes, lane, best);
        row_top(t, classes, lane, most);
        ACC sum = ACC(0), all = ACC(0), weight = ACC(0), own = ACC(0);
        for (i64 c = lane; c < classes; c += WARP) {
            const ACC v = z[c] - top;
            sum += exp(v);
            all += v;
            weight += t[c];
            own += t[c] * v;
        }
        sum = all_lanes(sum);
        all = all_lanes(all);
        weight = all_lanes(weight);
        own = all_lanes(own);
        const ACC spread = weight * smoothing / ACC(classes), full = ACC(1) - smoothing;
        for (i64 c = lane; c < classes; c += WARP)
            d[c] = (weight * exp(z[c] - top) / sum - full * t[c] - spread) * scale;
        if (lane == 0) {
            loss[row] = weight * log(sum) - full * own - spread * all;
            hit[row] = best == most && weight > ACC(0);
        }
    }
}
