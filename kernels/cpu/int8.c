/* Products of float32 activations, quantized on the way in, with int8 weights.

   Activations become bytes q + 128 with one scale for each row (of a convolution: for each image);
   the 128 is taken back by what the sums start from, -128 times the sums of the columns. Weights
   lie in panels of 32 columns: (panels, groups of 4 inputs, 32, 4), padded with zeros. Group g of
   an output lies at[g] bytes behind the first one, so that a convolution needs no columns: the
   bytes of an image, with its padding, are read where they are. Sums are exact integers: neither
   threads nor levels change a bit of them. */
#include "mpidl.h"

enum { COLUMNS = 32, GROUP = 4, BLOCK = 96, ROWS = 14, SLACK = 64 };

/* A matrix, and what becomes of its sums. */
typedef struct {
    const int8_t *w;
    const int32_t *base;
    const float *scales, *bias;
    const long *at; /* (groups) */
    long groups, cols;
    int relu;
} matrix;

#ifdef __AVX2__
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__GNUC__)
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

/* sum += x * w, by fours. By the intrinsic GCC copies every sum in every turn. */
#define DOT(sum, x, w) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w))

/* Outputs of one panel; `rows` is known at compile time, so that the sums live in registers. */
VNNI ALWAYS_INLINE void vnni_tile(const int rows, const uint8_t *q, const long *start,
                                  const float *scale, const matrix *m, long column, float *out) {
    __m512i sum[ROWS][2];
    const uint8_t *from[ROWS];
    const int8_t *w = m->w + column * m->groups * GROUP;
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++) {
        from[r] = q + start[r];
        sum[r][0] = _mm512_loadu_si512(m->base + column);
        sum[r][1] = _mm512_loadu_si512(m->base + column + 16);
    }
    for (long g = 0; g < m->groups; g++, w += COLUMNS * GROUP) {
        const __m512i low = _mm512_loadu_si512(w), high = _mm512_loadu_si512(w + 64);
        const long at = m->at[g];
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, from[r] + at, 4);
            const __m512i x = _mm512_set1_epi32(four);
            DOT(sum[r][0], x, low);
            DOT(sum[r][1], x, high);
        }
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        const long left = m->cols - column - 16 * half;
        const __mmask16 mask = left >= 16 ? 0xffff : left > 0 ? (1 << left) - 1 : 0;
        const __m512 steps = _mm512_loadu_ps(m->scales + column + 16 * half);
        const __m512 shift = m->bias ? _mm512_maskz_loadu_ps(mask, m->bias + column + 16 * half)
                                     : _mm512_setzero_ps();
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            const __m512 factor = _mm512_mul_ps(steps, _mm512_set1_ps(scale[r]));
            __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][half]), factor, shift);
            if (m->relu) y = _mm512_max_ps(_mm512_setzero_ps(), y); /* the second where it is NaN */
            _mm512_mask_storeu_ps(out + r * m->cols + column + 16 * half, mask, y);
        }
    }
}

#define CALL(count) vnni_tile(count, q, start, scale, m, column, out)

VNNI static void vnni_panel(long rows, const uint8_t *q, const long *start, const float *scale,
                            const matrix *m, long column, float *out) {
    const long tiles = (rows + ROWS - 1) / ROWS;
    for (long tile = 0, r = 0; tile < tiles; tile++) {
        const long count = (rows - r) / (tiles - tile); /* tiles of about one size */
        FOR_ROWS(count, CALL)
        r += count, start += count, scale += count, out += count * m->cols;
    }
}
#endif

/* sum (rows, 32) = base + q by a panel, for at most FEW rows. */
enum { FEW = 3 };
#ifdef __AVX2__
ALWAYS_INLINE void add_half(const int rows, int32_t (*sum)[COLUMNS], const uint8_t *q,
                            const long *start, const matrix *m, const int8_t *w) {
    __m256i part[FEW][4]; /* of 4 columns each: two halves of each sum */
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < 4; j++) part[r][j] = _mm256_setzero_si256();
    for (long g = 0; g < m->groups; g++, w += COLUMNS * GROUP) {
        __m256i x[FEW];
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, q + start[r] + m->at[g], 4);
            x[r] = _mm256_cvtepu8_epi16(_mm_set1_epi32(four));
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + 16 * j)));
#pragma GCC unroll 3
            for (int r = 0; r < rows; r++)
                part[r][j] = _mm256_add_epi32(part[r][j], _mm256_madd_epi16(x[r], b));
        }
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < 4; j += 2) {
            const __m256i mixed = _mm256_hadd_epi32(part[r][j], part[r][j + 1]);
            const __m256i ordered = _mm256_permute4x64_epi64(mixed, 0xD8);
            __m256i *to = (__m256i *)(sum[r] + 4 * j);
            _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), ordered));
        }
}

static void add_panel(long rows, int32_t (*sum)[COLUMNS], const uint8_t *q, const long *start,
                      const matrix *m, const int8_t *w) {
    for (int half = 0; half < 2; half++) {
        int32_t(*to)[COLUMNS] = (int32_t(*)[COLUMNS])(sum[0] + 16 * half);
        switch (rows) {
        case 1: add_half(1, to, q, start, m, w + 64 * half); break;
        case 2: add_half(2, to, q, start, m, w + 64 * half); break;
        default: add_half(3, to, q, start, m, w + 64 * half);
        }
    }
}
#else
static void add_panel(long rows, int32_t (*sum)[COLUMNS], const uint8_t *q, const long *start,
                      const matrix *m, const int8_t *w) {
    for (long g = 0; g < m->groups; g++, w += COLUMNS * GROUP)
        for (long r = 0; r < rows; r++) {
            const uint8_t *x = q + start[r] + m->at[g];
            for (int c = 0; c < COLUMNS; c++)
                for (int i = 0; i < GROUP; i++) sum[r][c] += x[i] * w[GROUP * c + i];
        }
}
#endif

static void plain_panel(long rows, const uint8_t *q, const long *start, const float *scale,
                        const matrix *m, long column, float *out) {
    const long width = m->cols - column < COLUMNS ? m->cols - column : COLUMNS;
    const int8_t *w = m->w + column * m->groups * GROUP;
    for (long low = 0; low < rows; low += FEW) {
        const long count = rows - low < FEW ? rows - low : FEW;
        int32_t sum[FEW][COLUMNS];
        for (long r = 0; r < count; r++) memcpy(sum[r], m->base + column, sizeof sum[r]);
        add_panel(count, sum, q, start + low, m, w);
        for (long r = 0; r < count; r++)
            for (long c = 0; c < width; c++) {
                const float y = (float)sum[r][c] * (m->scales[column + c] * scale[low + r]) +
                                (m->bias ? m->bias[column + c] : 0);
                out[(low + r) * m->cols + column + c] = m->relu && y < 0 ? 0 : y;
            }
    }
}

typedef void panel_product(long rows, const uint8_t *q, const long *start, const float *scale,
                           const matrix *m, long column, float *out);

static panel_product *best_product(void) {
#ifdef VNNI
    if (__builtin_cpu_supports("avx512vnni")) return vnni_panel;
#endif
    return plain_panel;
}

/* The scale that undoes bytes round(x * factor) + 128: NaN where x is not finite. */
static float scale_of(const float *x, long n, float *factor) {
    uint32_t top = 0;
    for (long i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff; /* magnitudes are ordered as integers are */
        top = bits > top ? bits : top;
    }
    float peak;
    memcpy(&peak, &top, 4);
    const int zero = !(peak > 1e-36f), bad = top >= 0x7f800000;
    *factor = zero || bad ? 0 : 127.0f / peak;
    return bad ? NAN : zero ? 0 : peak / 127.0f;
}

static void to_bytes(const float *x, uint8_t *q, long n, float factor) {
    if (factor == 0) { /* x may hold numbers that are not finite */
        memset(q, 128, (size_t)n);
        return;
    }
    for (long i = 0; i < n; i++) q[i] = (uint8_t)((int32_t)__builtin_rintf(x[i] * factor) + 128);
}

/* out (rows, cols) = act(x (rows, k) @ w (k, cols) + bias), one scale for each row of x. */
int mpidl_int8_dense_f32(const float *x, const int8_t *w, const int32_t *base, const float *scales,
                         const float *bias, float *out, long rows, long cols, long k, long panels,
                         long groups, int relu) {
    const long width = groups * GROUP, most = BLOCK * mpidl_threads;
    const size_t places = (size_t)(groups + most) * sizeof(long);
    char *memory = mpidl_scratch(SCRATCH_OTHER, places + (size_t)most * (size_t)(width + 4));
    if (!memory) return MPIDL_NO_MEMORY;
    long *at = (long *)memory, *start = at + groups;
    float *scale = (float *)(memory + places);
    uint8_t *q = (uint8_t *)(scale + most);
    for (long g = 0; g < groups; g++) at[g] = g * GROUP;
    for (long r = 0; r < most; r++) start[r] = r * width;
    const matrix m = {w, base, scales, bias, at, groups, cols, relu};
    panel_product *product = best_product();
    for (long low = 0; low < rows; low += most) {
        const long count = rows - low < most ? rows - low : most;
        const long blocks = (count + BLOCK - 1) / BLOCK;
        PARALLEL {
            SHARED_FOR
            for (long r = 0; r < count; r++) {
                float factor;
                scale[r] = scale_of(x + (low + r) * k, k, &factor);
                to_bytes(x + (low + r) * k, q + r * width, k, factor);
                memset(q + r * width + k, 0, (size_t)(width - k)); /* their weights are 0 */
            }
            SHARED_FOR
            for (long job = 0; job < blocks * panels; job++) {
                const long first = job / panels * BLOCK, column = job % panels * COLUMNS;
                product(count - first < BLOCK ? count - first : BLOCK, q, start + first,
                        scale + first, &m, column, out + (low + first) * cols);
            }
        }
    }
    return 0;
}

/* The bytes of an image with 128, which stands for 0, around it; the edges are there already. */
static float put_image(const float *x, uint8_t *q, const conv_geometry *g) {
    const long line = g->w * g->c, h = g->h + 2 * g->ph, w = (g->w + 2 * g->pw) * g->c;
    float factor;
    const float scale = scale_of(x, g->d * g->h * line, &factor);
    for (long z = 0; z < g->d; z++)
        for (long y = 0; y < g->h; y++)
            to_bytes(x + (z * g->h + y) * line,
                     q + ((z + g->pd) * h + y + g->ph) * w + g->pw * g->c, line, factor);
    return scale;
}

/* Where the groups of an output lie (`at`), and where each output begins (`start`). The inputs
 * below an output are runs of bytes: a line of the kernel, or a pixel where it is dilated. */
static void find_places(const conv_geometry *g, long *at, long *start) {
    const long h = g->h + 2 * g->ph, w = (g->w + 2 * g->pw) * g->c;
    const long parts = g->dw == 1 ? 1 : g->kw, run = g->dw == 1 ? g->kw * g->c : g->c;
    for (long z = 0; z < g->kd; z++)
        for (long y = 0; y < g->kh; y++)
            for (long x = 0; x < parts; x++)
                for (long i = 0; i < run; i += GROUP)
                    *at++ = (z * g->dd * h + y * g->dh) * w + x * g->dw * g->c + i;
    for (long z = 0; z < g->od; z++)
        for (long y = 0; y < g->oh; y++)
            for (long x = 0; x < g->ow; x++)
                *start++ = (z * g->sd * h + y * g->sh) * w + x * g->sw * g->c;
}

/* out = the maximum of each window of pool x pool pixels of y; a NaN stays. */
static void take_largest(const float *y, float *out, const conv_geometry *g, long pool) {
    const long cols = g->outputs;
    for (long i = 0; i < g->oh / pool; i++)
        for (long j = 0; j < g->ow / pool; j++, out += cols) {
            const float *window = y + (i * g->ow + j) * pool * cols;
            memcpy(out, window, (size_t)cols * sizeof(float));
            for (long a = 0; a < pool; a++)
                for (long b = a ? 0 : 1; b < pool; b++) {
                    const float *p = window + (a * g->ow + b) * cols;
                    for (long c = 0; c < cols; c++)
                        out[c] = (p[c] > out[c]) | (p[c] != p[c]) ? p[c] : out[c];
                }
        }
}

/* out = act(x convolved with w + bias), one group of channels, one scale for each image of x. With
 * pool > 1 (of images in a plane), the maximum of each window of pool x pool pixels of that. */
int mpidl_int8_conv_f32(const float *x, const int8_t *w, const int32_t *base, const float *scales,
                        const float *bias, float *out, const conv_geometry *g, long panels,
                        long groups, long pool, long outs, int relu) {
    (void)panels;
    const long size = g->d * g->h * g->w * g->c, pixels = g->od * g->oh * g->ow;
    const long bytes = (g->d + 2 * g->pd) * (g->h + 2 * g->ph) * (g->w + 2 * g->pw) * g->c + SLACK;
    const long own = pool > 1 ? pixels * g->outputs : 0; /* before pooling */
    const long each = (bytes + (pixels + own) * (long)sizeof(float) + 63) & ~63L;
    const size_t places = (size_t)(groups + pixels) * sizeof(long);
    char *memory = mpidl_scratch(SCRATCH_OTHER, places + (size_t)(mpidl_threads * each));
    if (!memory) return MPIDL_NO_MEMORY;
    long *at = (long *)memory, *start = at + groups;
    find_places(g, at, start);
    const matrix m = {w, base, scales, bias, at, groups, g->outputs, relu};
    panel_product *product = best_product();
    PARALLEL {
        float *scale = (float *)(memory + places + THREAD * each), *y = scale + pixels;
        uint8_t *q = (uint8_t *)(y + own);
        memset(q, 128, (size_t)bytes);
        SHARED_FOR
        for (long n = 0; n < g->n; n++) {
            float *to = out + n * outs * g->outputs;
            const float one = put_image(x + n * size, q, g);
            for (long r = 0; r < pixels; r++) scale[r] = one;
            for (long column = 0; column < g->outputs; column += COLUMNS)
                product(pixels, q, start, scale, &m, column, own ? y : to);
            if (own) take_largest(y, to, g, pool);
        }
    }
    return 0;
}
