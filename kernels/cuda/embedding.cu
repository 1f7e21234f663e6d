// Rows of a table, by number.

extern "C" __global__ void embedding_forward(const REAL *table, const i64 *ids, REAL *y, i64 count,
                                             i64 width) {
    if (width % PACK == 0 && packable(table, y)) {
        const i64 packs = width / PACK;
        FOR_EACH(i, count * packs)
            ((Pack *)y)[i] = ((const Pack *)table)[ids[i / packs] * packs + i % packs];
        return;
    }
    FOR_EACH(i, count * width) y[i] = table[ids[i / width] * width + i % width];
}

// Adds in any order: rows that occur more than once may differ in the last bit from run to run.
extern "C" __global__ void embedding_backward(const REAL *dy, const i64 *ids, ACC *dtable,
                                              i64 count, i64 width) {
    FOR_EACH(i, count * width) atomicAdd(dtable + ids[i / width] * width + i % width, ACC(dy[i]));
}
