// Softmax and cross-entropy, fused. One warp a row; blocks of (32, rows per block).

extern "C" __global__ void softmax_cross_entropy(const REAL *logits, const i64 *labels, ACC *loss,
                                                 REAL *dlogits, u8 *hit, i64 rows, i64 classes,
                                                 ACC scale, ACC smoothing) {
    const int lane = threadIdx.x;
    FOR_ROWS(row, rows) {
        const REAL *z = logits + row * classes;
        REAL *d = dlogits + row * classes;
        ACC top = z[0];
        i64 best = 0;
        for (i64 c = lane; c < classes; c += WARP)
            if (z[c] > top || (z[c] == top && c < best)) {
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
        top = __shfl_sync(FULL, top, 0);
        best = __shfl_sync(FULL, best, 0);
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
