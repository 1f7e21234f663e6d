/* Softmax and cross-entropy, fused, with the maximum subtracted first. */

/* loss[r] = -log softmax(logits[r])[label[r]]; dlogits = (softmax - onehot) * scale; hit[r] = argmax == label. */
int NAME(softmax_cross_entropy)(const REAL *logits, const int64_t *labels, REAL *loss, REAL *dlogits, uint8_t *hit, long rows, long classes,
                                double scale) {
    const REAL s = (REAL)scale;
    for (long r = 0; r < rows; r++, logits += classes, dlogits += classes) {
        REAL top = logits[0], sum = 0;
        long best = 0;
        for (long c = 1; c < classes; c++)
            if (logits[c] > top) top = logits[c], best = c;
        for (long c = 0; c < classes; c++) {
            const REAL e = sizeof(REAL) == 4 ? expf((float)(logits[c] - top)) : exp(logits[c] - top);
            dlogits[c] = e;
            sum += e;
        }
        const long label = (long)labels[r];
        loss[r] = (REAL)log((double)sum) - (logits[label] - top);
        hit[r] = best == label;
        for (long c = 0; c < classes; c++) dlogits[c] *= s / sum;
        dlogits[label] -= s;
    }
    return 0;
}
