/* Rows of a table, by number. */

/* y (count, width) = table[ids]. */
int NAME(embedding_forward)(const REAL *table, const int64_t *ids, REAL *y, long count,
                            long width) {
    PARALLEL_FOR(count * width)
    for (long i = 0; i < count; i++)
        memcpy(y + i * width, table + ids[i] * width, (size_t)width * sizeof(REAL));
    return 0;
}

/* dtable[ids] += dy, in the order of ids; threads divide the columns. */
int NAME(embedding_backward)(const REAL *dy, const int64_t *ids, REAL *dtable, long count,
                             long width) {
    PARALLEL {
        const long low = width * THREAD / THREADS, high = width * (THREAD + 1) / THREADS;
        for (long i = 0; i < count; i++)
            for (long c = low; c < high; c++) dtable[ids[i] * width + c] += dy[i * width + c];
    }
    return 0;
}
