/* Samples moved, mirrored and turned, from an element type GIVEN: out = in * scale + shift, fill
 * beyond an edge that is EDGE_FILL. A sample is converted as a whole first, which is one long
 * vector loop, and its rows are copied from the cache. Included by
 * augment_impl.h for each GIVEN. */

/* `run` pixels of c channels, from source pixels `step` elements apart. */
ALWAYS_INLINE void GATHER(run)(const REAL *restrict in, long step, REAL *restrict out, long run,
                               long c) {
    const long count = run * c;
    if (step == c && count >= 8 && count <= 64) /* the call of memcpy would take longer */
        for (long at = 0; at < count; at += 8) {
            const long from = at + 8 > count ? count - 8 : at; /* overlaps the one before */
            memcpy(out + from, in + from, 8 * sizeof(REAL));
        }
    else if (step == c) memcpy(out, in, (size_t)count * sizeof(REAL));
    else if (c == 1 && step == -1)
        for (long r = 0; r < run; r++) out[r] = in[-r];
    else if (c == 3)
        for (long r = 0; r < run; r++) memcpy(out + 3 * r, in + r * step, 3 * sizeof(REAL));
    else
        for (long r = 0; r < run; r++)
            for (long k = 0; k < c; k++) out[r * c + k] = in[r * step + k];
}

ALWAYS_INLINE void GATHER(fill)(REAL *out, long count, REAL value) {
    for (long i = 0; i < count; i++) out[i] = value;
}

/* A row of `count` pixels whose source pixels lie along one axis: from element `first` on, forwards
 * or backwards (sign), `step` elements apart. */
ALWAYS_INLINE void GATHER(row)(const REAL *in, long step, long size, long edge, long first,
                               long sign, REAL *out, long count, long c, REAL fill) {
    for (long done = 0, run; done < count; done += run) {
        const long left = count - done, at = first + sign * done, from = fold(at, size, edge);
        run = 1;
        if (from < 0) run = at < 0 ? (sign > 0 ? -at : left) : (sign < 0 ? at - size + 1 : left);
        else if (from == at || edge == EDGE_WRAP) run = sign > 0 ? size - from : from + 1;
        run = run < left ? run : left;
        REAL *to = out + done * c;
        if (from < 0) GATHER(fill)(to, run * c, fill);
        else GATHER(run)(in + from * step, sign * step, to, run, c);
    }
}

int GATHER(augment_gather)(const GIVEN *x, REAL *out, const long *samples, long seed, long epoch,
                           const augment_geometry *g, double scale, double shift, double fill) {
    const REAL a = (REAL)scale, offset = (REAL)shift, beyond = (REAL)fill;
    int failed = 0;
    const long row = g->w * g->c, plane = g->h * row;
    PARALLEL_FOR(g->n *g->d *plane)
    for (long n = 0; n < g->n; n++) {
        const long size = g->d * plane;
        REAL *held = mpidl_scratch(SCRATCH_OTHER, (size_t)size * sizeof(REAL));
        if (held == NULL) {
            failed = MPIDL_NO_MEMORY;
            continue;
        }
        const GIVEN *given = x + n * size;
        for (long i = 0; i < size; i++) held[i] = (REAL)given[i] * a + offset;
        const placement p = place(g, seed, epoch, samples[n]);
        /* axes of the source that rows of the result lie along, and across */
        const int along = p.swap ? 1 : 2, across = 3 - along;
        const long sizes[3] = {g->d, g->h, g->w}, steps[3] = {plane, row, g->c},
                   edges[3] = {g->edge_d, g->edge_h, g->edge_w};
        const long sign = p.mirrored[along] ? -1 : 1,
                   first = (p.mirrored[along] ? sizes[along] - 1 : 0) + p.shift[along];
        for (long d = 0; d < g->d; d++) {
            const long from_d = fold(d + p.shift[0], g->d, g->edge_d);
            for (long i = 0; i < g->h; i++) {
                REAL *to = out + ((n * g->d + d) * g->h + i) * row;
                const long at = (p.mirrored[across] ? sizes[across] - 1 - i : i) + p.shift[across],
                           from = fold(at, sizes[across], edges[across]);
                if (from_d < 0 || from < 0) GATHER(fill)(to, row, beyond);
                else
                    GATHER(row)(held + from_d * plane + from * steps[across], steps[along],
                                sizes[along], edges[along], first, sign, to, g->w, g->c, beyond);
            }
        }
    }
    return failed;
}
