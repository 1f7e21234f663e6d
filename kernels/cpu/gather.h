/* Samples moved, mirrored and turned, from an element type GIVEN: out = in * scale + shift, fill
 * beyond an edge that is EDGE_FILL. Included by augment_impl.h for each GIVEN. */

/* A copy in whole blocks, the last of which overlaps the one before: short rows would take longer
 * in the call of memcpy. */
ALWAYS_INLINE void GATHER(copy)(GIVEN *restrict out, const GIVEN *restrict in, long count) {
    if (count < 16)
        for (long i = 0; i < count; i++) out[i] = in[i];
    else
        for (long at = 0; at < count; at += 16) {
            const long from = at + 16 > count ? count - 16 : at;
            memcpy(out + from, in + from, 16 * sizeof(GIVEN));
        }
}

/* Pixels of c channels in reverse order. */
ALWAYS_INLINE void GATHER(reverse)(const GIVEN *restrict in, GIVEN *restrict out, long pixels,
                                   long c) {
    if (c == 1)
        for (long i = 0; i < pixels; i++) out[i] = in[pixels - 1 - i];
    else if (c == 3) {
        long i = 0;
        if (sizeof(GIVEN) == 1) i = reverse_colors((const void *)in, (void *)out, pixels);
        for (; i < pixels; i++)
            for (int k = 0; k < 3; k++) out[3 * i + k] = in[3 * (pixels - 1 - i) + k];
    } else
        for (long i = 0; i < pixels; i++)
            for (long k = 0; k < c; k++) out[c * i + k] = in[c * (pixels - 1 - i) + k];
}

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

/* The columns of `count` rows of a result, from rows `step` elements apart in x, that lie beyond an
 * edge. */
ALWAYS_INLINE void GATHER(sides)(const GIVEN *x, long step, GIVEN *out, long count,
                                 const augment_geometry *g, reach w) {
    const long c = g->c;
    for (long i = 0; i < count; i++, x += step, out += w.count * c)
        if (g->edge_w == EDGE_WRAP) GATHER(copy)(out + w.high * c, x, (w.count - w.high) * c);
        else
            for (long j = w.low ? 0 : w.high; j < w.count; j = j + 1 == w.low ? w.high : j + 1)
                GATHER(copy)(out + j * c, x + fold(j + w.first, g->w, g->edge_w) * c, c);
}

/* As `sides`, all columns; none beyond an edge that is EDGE_FILL. */
ALWAYS_INLINE void GATHER(rows)(const GIVEN *x, long step, GIVEN *out, long count,
                                const augment_geometry *g, reach w) {
    const long run = (w.high - w.low) * g->c;
    const GIVEN *in = x + (w.low + w.first) * g->c;
    GIVEN *to = out + w.low * g->c;
    for (long i = 0; run > 0 && i < count; i++, in += step, to += w.count * g->c)
        GATHER(copy)(to, in, run);
    if (g->edge_w != EDGE_FILL && w.high - w.low < w.count)
        GATHER(sides)(x, step, out, count, g, w);
}

/* A sample whose axes keep their places, in its own type: out of x, or where columns are mirrored
 * out of x reversed as a whole. Nothing is written beyond an edge that is EDGE_FILL. */
ALWAYS_INLINE void GATHER(collect)(const GIVEN *x, GIVEN *out, const augment_geometry *g,
                                   placement p, reach w) {
    const long row = g->w * g->c, plane = g->h * row;
    const int down = p.mirrored[1] != p.mirrored[2]; /* rows of x are taken from the last on */
    const reach h = within(p.shift[1], p.mirrored[1], g->h, g->oh);
    for (long d = 0; d < g->od; d++) {
        const long from = fold(d + p.shift[0], g->d, g->edge_d);
        if (from < 0) continue;
        const GIVEN *in = x + (p.mirrored[2] ? g->d - 1 - from : from) * plane;
        for (long i = 0, count; i < g->oh; i += count) {
            count = i == h.low && h.low < h.high ? h.high - h.low : 1;
            const long at = fold(i + h.first, g->h, g->edge_h);
            if (at < 0) continue;
            GATHER(rows)(in + (down ? g->h - 1 - at : at) * row, down ? -row : row,
                         out + (d * g->oh + i) * g->ow * g->c, count, g, w);
        }
    }
}

/* Give all that lies beyond an edge that is EDGE_FILL the value `beyond`. */
ALWAYS_INLINE void GATHER(surround)(REAL *out, const augment_geometry *g, placement p, reach w,
                                    REAL beyond) {
    const long c = g->c;
    for (long d = 0; d < g->od; d++)
        for (long i = 0; i < g->oh; i++, out += w.count * c) {
            const long at = (p.mirrored[1] ? g->oh - 1 - i : i) + p.shift[1];
            const int whole = fold(d + p.shift[0], g->d, g->edge_d) < 0 ||
                              fold(at, g->h, g->edge_h) < 0;
            if (whole) GATHER(fill)(out, w.count * c, beyond);
            else if (g->edge_w == EDGE_FILL) {
                GATHER(fill)(out, w.low * c, beyond);
                GATHER(fill)(out + w.high * c, (w.count - w.high) * c, beyond);
            }
        }
}

/* A sample whose axes keep their places; `held` has room for it and its result. It is collected in
 * its own type and converted as a whole, in one long vector loop. */
ALWAYS_INLINE void GATHER(move)(const GIVEN *x, GIVEN *held, REAL *out, const augment_geometry *g,
                                placement p, REAL a, REAL b, REAL beyond) {
    const long pixels = g->d * g->h * g->w, size = g->od * g->oh * g->ow * g->c;
    if (p.mirrored[2]) {
        GATHER(reverse)(x, held + size, pixels, g->c);
        x = held + size;
    }
    reach w = within(p.shift[2], p.mirrored[2], g->w, g->ow);
    if (g->edge_w == EDGE_WRAP) w = within(fold(w.first, g->w, EDGE_WRAP), 0, g->w, g->ow);
    const int open = g->edge_w == EDGE_FILL || g->edge_h == EDGE_FILL || g->edge_d == EDGE_FILL;
    if (open) memset(held, 0, (size_t)size * sizeof(GIVEN));
    GATHER(collect)(x, held, g, p, w);
    for (long i = 0; i < size; i++) out[i] = (REAL)held[i] * a + b;
    if (open && beyond != b) GATHER(surround)(out, g, p, w, beyond);
}

/* A sample whose axes h and w are swapped; `held` has room for it. */
ALWAYS_INLINE void GATHER(turn)(const GIVEN *x, REAL *held, REAL *out, const augment_geometry *g,
                                placement p, REAL a, REAL b, REAL beyond) {
    const long row = g->w * g->c, plane = g->h * row, side = g->ow;
    for (long i = 0; i < g->d * plane; i++) held[i] = (REAL)x[i] * a + b;
    const long sign = p.mirrored[1] ? -1 : 1, first = (p.mirrored[1] ? side - 1 : 0) + p.shift[1];
    for (long d = 0; d < g->od; d++) {
        const long from_d = fold(d + p.shift[0], g->d, g->edge_d);
        for (long i = 0; i < side; i++) {
            REAL *to = out + (d * side + i) * side * g->c;
            const long at = (p.mirrored[2] ? side - 1 - i : i) + p.shift[2],
                       from = fold(at, g->w, g->edge_w);
            if (from_d < 0 || from < 0) GATHER(fill)(to, side * g->c, beyond);
            else
                GATHER(row)(held + from_d * plane + from * g->c, row, g->h, g->edge_h, first, sign,
                            to, side, g->c, beyond);
        }
    }
}

int GATHER(augment_gather)(const GIVEN *x, REAL *out, const long *samples, long seed, long epoch,
                           const augment_geometry *g, double scale, double shift, double fill) {
    const REAL a = (REAL)scale, b = (REAL)shift, beyond = (REAL)fill;
    const long size = g->d * g->h * g->w * g->c, moved = g->od * g->oh * g->ow * g->c;
    int failed = 0;
    PARALLEL_FOR(g->n *size)
    for (long n = 0; n < g->n; n++) {
        void *held = mpidl_scratch(SCRATCH_OTHER, (size_t)(size + moved) * sizeof(REAL));
        if (held == NULL) {
            failed = MPIDL_NO_MEMORY;
            continue;
        }
        const placement p = place(g, seed, epoch, samples[n]);
        if (p.swap) GATHER(turn)(x + n * size, held, out + n * moved, g, p, a, b, beyond);
        else GATHER(move)(x + n * size, held, out + n * moved, g, p, a, b, beyond);
    }
    return failed;
}
