/* Augmentation of a batch. What is drawn for a sample is a function of (seed, epoch, number of the
 * sample) alone, by Philox4x32-10: the same on every rank, in every kernel and after a resume. */
#ifndef AUGMENT_DRAWS
#define AUGMENT_DRAWS
#ifdef __SSSE3__
#include <immintrin.h>
#endif
enum { DRAW_MOVE = 0x41550000, DRAW_MIRROR, DRAW_CUTOUT, DRAW_JITTER, DRAW_MIX };
#define DRAW_NOISE 0x80000000u /* and the number of 4 elements */
enum { NOISE_LANES = 16 }; /* calls of the generator at once, of 4 numbers each */

ALWAYS_INLINE void draw(uint32_t words[4], long seed, long epoch, long sample, uint32_t stream) {
    words[0] = (uint32_t)sample;
    words[1] = (uint32_t)((uint64_t)sample >> 32);
    words[2] = (uint32_t)epoch;
    words[3] = stream;
    philox(words, seed);
}

/* A whole number below `count`. */
ALWAYS_INLINE long below(uint32_t word, long count) {
    return (long)(((uint64_t)word * (uint64_t)count) >> 32);
}

/* Where a sample's elements come from: element o of axis a of the result, which has `size` of them,
 * from element (mirrored[a] ? size - 1 - o : o) + shift[a], h and w of the result swapped before
 * where `swap`. */
typedef struct {
    long shift[3];
    int swap, mirrored[3];
} placement;

ALWAYS_INLINE placement place(const augment_geometry *g, long seed, long epoch, long sample) {
    uint32_t move[4], mirror[4] = {0};
    draw(move, seed, epoch, sample, DRAW_MOVE);
    placement p = {{g->low_d + below(move[0], g->spread_d), g->low_h + below(move[1], g->spread_h),
                    g->low_w + below(move[2], g->spread_w)},
                   0,
                   {0, 0, 0}};
    const int code = move[3] & 7;
    p.swap = g->turn & 1 ? code & 1 : 0;
    p.mirrored[1] = g->turn ? code >> 1 & 1 : 0;
    /* quarter turns alone: one mirrored axis with a swap, both or none without */
    p.mirrored[2] = g->turn == 1 ? p.mirrored[1] ^ p.swap : g->turn ? code >> 2 & 1 : 0;
    if (g->mirror_h || g->mirror_w) {
        draw(mirror, seed, epoch, sample, DRAW_MIRROR);
        /* of the result: where its axes are swapped, of the other axis of the source */
        p.mirrored[1 + p.swap] ^= (long long)mirror[0] < g->mirror_h;
        p.mirrored[2 - p.swap] ^= (long long)mirror[1] < g->mirror_w;
    }
    return p;
}

/* The element within [0, size) that stands for `at`; -1 where there is none. */
ALWAYS_INLINE long fold(long at, long size, long edge) {
    if (at >= 0 && at < size) return at;
    switch (edge) {
    case EDGE_WRAP: at %= size; return at < 0 ? at + size : at;
    case EDGE_REFLECT: return at < 0 ? -at : 2 * (size - 1) - at;
    case EDGE_NEAREST: return at < 0 ? 0 : size - 1;
    default: return -1;
    }
}

/* Element j of `count` elements of a result comes from element j + first of its source, which has
 * those of [low, high). */
typedef struct {
    long first, low, high, count;
} reach;

/* A source of `size` elements; it is counted from its end on where the result is mirrored. */
ALWAYS_INLINE reach within(long shift, int mirrored, long size, long count) {
    const long first = mirrored ? size - count - shift : shift, low = first < 0 ? -first : 0;
    const reach found = {first, low < count ? low : count,
                         size - first < count ? (size > first ? size - first : 0) : count, count};
    return found;
}

/* Reverse the order of pixels of 3 bytes, all but the last few; returns how many were written. */
static inline long reverse_colors(const uint8_t *in, uint8_t *out, long pixels) {
    long i = 0;
#ifdef __SSSE3__
    /* 5 pixels at once; the byte before them goes where the next 5 will be */
    const __m128i order = _mm_setr_epi8(13, 14, 15, 10, 11, 12, 7, 8, 9, 4, 5, 6, 1, 2, 3, 0);
    for (; pixels - i > 5; i += 5) {
        const __m128i five = _mm_loadu_si128((const void *)(in + 3 * (pixels - i - 5) - 1));
        _mm_storeu_si128((void *)(out + 3 * i), _mm_shuffle_epi8(five, order));
    }
#else
    (void)in, (void)out, (void)pixels;
#endif
    return i;
}

/* The place 2^-32 * word of the way through a table of `count` numbers up to 2^30, in whole numbers
 * alone: the same in every kernel. */
ALWAYS_INLINE long quantile(const long *table, long count, uint32_t word) {
    const uint64_t at = (uint64_t)word * (uint64_t)(count - 1);
    const long low = table[at >> 32], step = table[(at >> 32) + 1] - low;
    return low + ((step * (long)(uint32_t)at) >> 32);
}
#endif

#define GATHER(name) NAME(name)
#define GIVEN REAL
#include "gather.h"
#undef GIVEN
#undef GATHER
#define GATHER(name) NAME(name##_u8)
#define GIVEN uint8_t
#include "gather.h"
#undef GIVEN
#undef GATHER

/* Turn vectors (u along h, v along w), two channels each of all elements of x, as the samples were
 * turned. Numbers are stored as u * scale + shift. */
int NAME(augment_vectors)(REAL *x, const long *samples, const long *vectors, long count, long seed,
                          long epoch, const augment_geometry *g, double shift) {
    const REAL twice = (REAL)(2 * shift);
    const long pixels = g->od * g->oh * g->ow;
    PARALLEL_FOR(g->n *pixels *g->c)
    for (long n = 0; n < g->n; n++) {
        const placement p = place(g, seed, epoch, samples[n]);
        for (long i = 0; i < pixels; i++) {
            REAL *at = x + (n * pixels + i) * g->c;
            for (long k = 0; k < count; k++) {
                REAL *u = at + vectors[2 * k], *v = at + vectors[2 * k + 1];
                const REAL along_h = p.mirrored[1] ? twice - *u : *u,
                           along_w = p.mirrored[2] ? twice - *v : *v;
                *u = p.swap ? along_w : along_h;
                *v = p.swap ? along_h : along_w;
            }
        }
    }
    return 0;
}

/* A square of `size` elements around a drawn one becomes 0, with probability chance / 2^32. */
int NAME(augment_cutout)(REAL *x, const long *samples, long seed, long epoch, long n, long h,
                         long w, long c, long size, long chance) {
    PARALLEL_FOR(n *size *size *c)
    for (long k = 0; k < n; k++) {
        uint32_t words[4];
        draw(words, seed, epoch, samples[k], DRAW_CUTOUT);
        if ((long)words[2] >= chance) continue;
        const long top = below(words[0], h) - size / 2, left = below(words[1], w) - size / 2;
        const long first = left < 0 ? 0 : left, last = left + size > w ? w : left + size;
        for (long i = top < 0 ? 0 : top; i < h && i < top + size; i++)
            memset(x + ((k * h + i) * w + first) * c, 0,
                   (size_t)((last - first) * c) * sizeof(REAL));
    }
    return 0;
}

/* x = share * x + (1 - share) * other for each of n samples of `size` elements, with a share from
 * the table of quantiles (in 2^-30), with probability chance / 2^32; otherwise share = 1. */
int NAME(augment_mixup)(REAL *x, const REAL *other, REAL *share, const long *table,
                        const long *samples, long seed, long epoch, long n, long size, long count,
                        long chance) {
    PARALLEL_FOR(n *size)
    for (long k = 0; k < n; k++) {
        uint32_t words[4];
        draw(words, seed, epoch, samples[k], DRAW_MIX);
        share[k] = 1;
        if ((long)words[1] >= chance) continue;
        const REAL own = (REAL)quantile(table, count, words[0]) / (REAL)(1 << 30), rest = 1 - own;
        share[k] = own;
        for (long i = k * size; i < (k + 1) * size; i++) x[i] = own * x[i] + rest * other[i];
    }
    return 0;
}

/* A box of x becomes that of other; the table has quantiles of its height and width as parts of the
 * image, in 2^-30. share: the part of the image that is left. */
int NAME(augment_cutmix)(REAL *x, const REAL *other, REAL *share, const long *table,
                         const long *samples, long seed, long epoch, long n, long h, long w, long c,
                         long count, long chance) {
    PARALLEL_FOR(n *h *w *c)
    for (long k = 0; k < n; k++) {
        uint32_t words[4];
        draw(words, seed, epoch, samples[k], DRAW_MIX);
        share[k] = 1;
        if ((long)words[1] >= chance) continue;
        const long side = quantile(table, count, words[0]), high = (h * side) >> 30,
                   wide = (w * side) >> 30, top = below(words[2], h) - high / 2,
                   left = below(words[3], w) - wide / 2;
        const long i0 = top < 0 ? 0 : top, i1 = top + high > h ? h : top + high,
                   j0 = left < 0 ? 0 : left, j1 = left + wide > w ? w : left + wide;
        share[k] = (REAL)(h * w - (i1 - i0) * (j1 - j0)) / (REAL)(h * w);
        for (long i = i0; i < i1; i++) {
            const long at = ((k * h + i) * w + j0) * c;
            memcpy(x + at, other + at, (size_t)((j1 - j0) * c) * sizeof(REAL));
        }
    }
    return 0;
}

/* A factor within 1 - spread and 1 + spread. */
ALWAYS_INLINE REAL NAME(factor)(uint32_t word, double spread) {
    return (REAL)(1 + spread * (2 * ((double)word / 4294967296.0) - 1));
}

/* Colors of n images of `pixels` pixels: brightness x = black + f (x - black), then contrast around
 * the mean gray of the image, then (c == 3) saturation around the gray of each pixel. Gray is the
 * mean of the channels, or 0.299 red + 0.587 green + 0.114 blue. */
int NAME(augment_jitter)(REAL *x, const long *samples, long seed, long epoch, long n, long pixels,
                         long c, double black, double brightness, double contrast,
                         double saturation) {
    const REAL zero = (REAL)black, parts[3] = {(REAL)0.299, (REAL)0.587, (REAL)0.114};
    PARALLEL_FOR(n *pixels *c)
    for (long k = 0; k < n; k++) {
        REAL *image = x + k * pixels * c;
        uint32_t words[4];
        draw(words, seed, epoch, samples[k], DRAW_JITTER);
        const REAL bright = NAME(factor)(words[0], brightness),
                   harsh = NAME(factor)(words[1], contrast),
                   vivid = NAME(factor)(words[2], saturation);
        double sum = 0;
        if (c == 3)
            for (long i = 0; i < pixels * 3; i += 3)
                sum += parts[0] * image[i] + parts[1] * image[i + 1] + parts[2] * image[i + 2];
        else
            for (long i = 0; i < pixels * c; i++) sum += image[i] / (double)c;
        const REAL mean = zero + bright * ((REAL)(sum / (double)pixels) - zero);
        const REAL scale = bright * harsh,
                   shift = harsh * zero * (1 - bright) + (1 - harsh) * mean;
        for (long i = 0; i < pixels * c; i++) image[i] = scale * image[i] + shift;
        for (long i = 0; c == 3 && i < pixels * 3; i += 3) {
            const REAL gray =
                parts[0] * image[i] + parts[1] * image[i + 1] + parts[2] * image[i + 2];
            for (long j = i; j < i + 3; j++) image[j] = gray + vivid * (image[j] - gray);
        }
    }
    return 0;
}

/* Normal numbers for elements [first, first + 4 * NOISE_LANES) of a sample (Box and Muller,
 * 1958). */
ALWAYS_INLINE void NAME(normals)(REAL *out, long seed, long epoch, long sample, long first) {
    uint32_t words[4][NOISE_LANES];
    for (int i = 0; i < NOISE_LANES; i++) {
        uint32_t own[4];
        draw(own, seed, epoch, sample, DRAW_NOISE | (uint32_t)(first / 4 + i));
        for (int j = 0; j < 4; j++) words[j][i] = own[j];
    }
    for (int pair = 0; pair < 4; pair += 2)
        for (int i = 0; i < NOISE_LANES; i++) {
            /* a number in (0, 1], and an angle in turns within -1/2 and 1/2 */
            const REAL u = ((REAL)(words[pair][i] >> 8) + (REAL)0.5) / (REAL)(1 << 24),
                       t = (REAL)(int32_t)words[pair + 1][i] / (REAL)4294967296.0,
                       a = t < 0 ? -t : t, quarter = (REAL)0.25,
                       folded = a > quarter ? (REAL)0.5 - a : a;
            const REAL square = -2 * NAME(fast_log)(u);
            const REAL radius =
                sizeof(REAL) == 8 ? (REAL)sqrt((double)square) : (REAL)sqrtf((float)square);
            out[4 * i + pair] = radius * NAME(sine_of_turn)(quarter - a);
            out[4 * i + pair + 1] = radius * NAME(sine_of_turn)(t < 0 ? -folded : folded);
        }
}

/* Add normal numbers times std to n samples of `size` elements. */
int NAME(augment_noise)(REAL *x, const long *samples, long seed, long epoch, long n, long size,
                        double std) {
    const REAL scale = (REAL)std;
    PARALLEL_FOR(n *size * 8)
    for (long k = 0; k < n; k++)
        for (long first = 0; first < size; first += 4 * NOISE_LANES) {
            REAL drawn[4 * NOISE_LANES];
            NAME(normals)(drawn, seed, epoch, samples[k], first);
            const long left = size - first, count = left < 4 * NOISE_LANES ? left : 4 * NOISE_LANES;
            for (long i = 0; i < count; i++) x[k * size + first + i] += scale * drawn[i];
        }
    return 0;
}
