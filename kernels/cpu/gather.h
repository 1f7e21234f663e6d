/* Samples moved, mirrored and turned, from an element type GIVEN: out = in * scale + shift, fill
 * beyond an edge that is EDGE_FILL. Included by augment_impl.h for each GIVEN. */

/* `run` pixels of c channels, from source pixels `step` elements apart. */
ALWAYS_INLINE void GATHER(pixels)(const GIVEN *in, long step, REAL *out, long run, long c,
                                  REAL scale, REAL shift) {
    for (long r = 0; r < run; r++)
        for (long k = 0; k < c; k++) out[r * c + k] = (REAL)in[r * step + k] * scale + shift;
}

static void GATHER(run)(const GIVEN *in, long step, REAL *out, long run, long c, REAL scale,
                        REAL shift) {
    if (step == c) GATHER(pixels)(in, 1, out, run * c, 1, scale, shift);
    else if (step == -1 && c == 1) GATHER(pixels)(in, -1, out, run, 1, scale, shift);
    else if (c == 1) GATHER(pixels)(in, step, out, run, 1, scale, shift);
    else if (c == 3) GATHER(pixels)(in, step, out, run, 3, scale, shift);
    else GATHER(pixels)(in, step, out, run, c, scale, shift);
}

ALWAYS_INLINE void GATHER(fill)(REAL *out, long count, REAL value) {
    for (long i = 0; i < count; i++) out[i] = value;
}

/* A row of `count` pixels whose source pixels lie along one axis: from element `first` on, forwards
 * or backwards (sign), `step` elements apart. */
static void GATHER(row)(const GIVEN *in, long step, long size, long edge, long first, long sign,
                        REAL *out, long count, long c, const REAL affine[3]) {
    for (long done = 0, run; done < count; done += run) {
        const long left = count - done, at = first + sign * done, from = fold(at, size, edge);
        run = 1;
        if (from < 0) run = at < 0 ? (sign > 0 ? -at : left) : (sign < 0 ? at - size + 1 : left);
        else if (from == at || edge == EDGE_WRAP) run = sign > 0 ? size - from : from + 1;
        run = run < left ? run : left;
        REAL *to = out + done * c;
        if (from < 0) GATHER(fill)(to, run * c, affine[2]);
        else GATHER(run)(in + from * step, sign * step, to, run, c, affine[0], affine[1]);
    }
}

int GATHER(augment_gather)(const GIVEN *x, REAL *out, const long *samples, long seed, long epoch,
                           const augment_geometry *g, double scale, double shift, double fill) {
    const REAL affine[3] = {(REAL)scale, (REAL)shift, (REAL)fill};
    const long row = g->w * g->c, plane = g->h * row;
    PARALLEL_FOR(g->n *g->d *plane)
    for (long n = 0; n < g->n; n++) {
        const placement p = place(g, seed, epoch, samples[n]);
        /* a is the axis of the source that rows of the result lie along, b the other one */
        const int a = p.swap ? 1 : 2, b = 3 - a;
        const long sizes[3] = {g->d, g->h, g->w}, steps[3] = {plane, row, g->c},
                   edges[3] = {g->edge_d, g->edge_h, g->edge_w};
        const long sign = p.mirrored[a] ? -1 : 1,
                   first = (p.mirrored[a] ? sizes[a] - 1 : 0) + p.shift[a];
        for (long d = 0; d < g->d; d++) {
            const long from_d = fold(d + p.shift[0], g->d, g->edge_d);
            for (long i = 0; i < g->h; i++) {
                REAL *to = out + ((n * g->d + d) * g->h + i) * row;
                const long at = (p.mirrored[b] ? sizes[b] - 1 - i : i) + p.shift[b],
                           from = fold(at, sizes[b], edges[b]);
                if (from_d < 0 || from < 0) GATHER(fill)(to, row, affine[2]);
                else
                    GATHER(row)(x + (n * g->d + from_d) * plane + from * steps[b], steps[a],
                                sizes[a], edges[a], first, sign, to, g->w, g->c, affine);
            }
        }
    }
    return 0;
}
