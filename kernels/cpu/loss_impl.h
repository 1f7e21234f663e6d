/* Softmax and cross-entropy, fused, with the maximum subtracted first. */

/* loss[r] = -sum of target * log softmax(logits[r]); target is 1 - smoothing at the label, and
 * smoothing / classes everywhere; dlogits = (softmax - target) * scale; hit[r] = argmax == label. A
 * row with a negative label counts nothing. */
int NAME(softmax_cross_entropy)(const REAL *logits, const int64_t *labels, REAL *loss,
                                REAL *dlogits, uint8_t *hit, long rows, long classes, double scale,
                                double smoothing) {
    const REAL s = (REAL)scale, spread = (REAL)(smoothing / (double)classes),
               full = (REAL)(1 - smoothing);
    PARALLEL_FOR(rows * classes * 8)
    for (long r = 0; r < rows; r++) {
        const REAL *z = logits + r * classes;
        REAL *d = dlogits + r * classes, top = z[0], sum = 0, all = 0;
        const long label = (long)labels[r];
        long best = 0;
        if (label < 0) {
            memset(d, 0, (size_t)classes * sizeof(REAL));
            loss[r] = 0;
            hit[r] = 0;
            continue;
        }
        for (long c = 1; c < classes; c++)
            if (z[c] > top) {
                top = z[c];
                best = c;
            }
#pragma omp simd reduction(+ : sum, all)
        for (long c = 0; c < classes; c++) {
            const REAL e = NAME(fast_exp)(z[c] - top);
            d[c] = e;
            sum += e;
            all += z[c] - top;
        }
        loss[r] = (REAL)log((double)sum) - full * (z[label] - top) - spread * all;
        hit[r] = best == label;
        for (long c = 0; c < classes; c++) d[c] = (d[c] / sum - spread) * s;
        d[label] -= full * s;
    }
    return 0;
}

/* The same with a share of each class in a row's target; shares need not add up to 1, and smoothing
 * spreads their sum. hit[r]: whether the largest logit is that of the largest share. */
int NAME(softmax_cross_entropy_shares)(const REAL *logits, const REAL *shares, REAL *loss,
                                       REAL *dlogits, uint8_t *hit, long rows, long classes,
                                       double scale, double smoothing) {
    const REAL s = (REAL)scale, full = (REAL)(1 - smoothing);
    PARALLEL_FOR(rows * classes * 8)
    for (long r = 0; r < rows; r++) {
        const REAL *z = logits + r * classes, *t = shares + r * classes;
        REAL *d = dlogits + r * classes, top = z[0], sum = 0, all = 0, weight = 0, own = 0;
        long best = 0, most = 0;
        for (long c = 1; c < classes; c++) {
            if (z[c] > top) {
                top = z[c];
                best = c;
            }
            if (t[c] > t[most]) most = c;
        }
#pragma omp simd reduction(+ : sum, all, weight, own)
        for (long c = 0; c < classes; c++) {
            const REAL e = NAME(fast_exp)(z[c] - top);
            d[c] = e;
            sum += e;
            all += z[c] - top;
            weight += t[c];
            own += t[c] * (z[c] - top);
        }
        const REAL spread = weight * (REAL)(smoothing / (double)classes);
        loss[r] = weight * (REAL)log((double)sum) - full * own - spread * all;
        hit[r] = best == most && weight > 0;
        for (long c = 0; c < classes; c++)
            d[c] = (weight * d[c] / sum - full * t[c] - spread) * s;
    }
    return 0;
}
