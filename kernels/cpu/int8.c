/* Products of float32 activations, quantized on the way in, with int8 weights.

   Activations become bytes q + 128 with one scale for each row (of a convolution: for each image);
   the 128 is taken back by what the sums start from, -128 times the sums of the columns. Weights
   lie in panels of 32 columns: (panels, groups of 4 inputs, 32, 4), padded with zeros. Sums are
   exact integers: neither threads nor levels change a bit of them. */
#include "mpidl.h"

enum { COLUMNS = 32, GROUP = 4, BLOCK = 96, ROWS = 12 };

#ifdef __AVX2__
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__GNUC__)
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

/* sum += x * w, by fours. By the intrinsic GCC copies every sum in every turn. */
#define DOT(sum, x, w) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w))

/* `rows` is known at compile time, so that the sums live in registers. */
VNNI ALWAYS_INLINE void vnni_tile(const int rows, const uint8_t *q, const float *row_scale,
                                  const int8_t *w, const int32_t *base, const float *scales,
                                  const float *bias, float *out, long cols, long width,
                                  long groups, int relu) {
    __m512i sum[ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        sum[r][0] = _mm512_loadu_si512(base);
        sum[r][1] = _mm512_loadu_si512(base + 16);
    }
    for (long g = 0; g < groups; g++, w += COLUMNS * GROUP) {
        const __m512i low = _mm512_loadu_si512(w), high = _mm512_loadu_si512(w + 64);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, q + (r * groups + g) * GROUP, 4);
            const __m512i x = _mm512_set1_epi32(four);
            DOT(sum[r][0], x, low);
            DOT(sum[r][1], x, high);
        }
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        const long left = width - 16 * half;
        const __mmask16 mask = left >= 16 ? 0xffff : left > 0 ? (1 << left) - 1 : 0;
        const __m512 scale = _mm512_loadu_ps(scales + 16 * half);
        const __m512 shift =
            bias ? _mm512_maskz_loadu_ps(mask, bias + 16 * half) : _mm512_setzero_ps();
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            const __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(row_scale[r]));
            __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][half]), factor, shift);
            if (relu) y = _mm512_max_ps(_mm512_setzero_ps(), y); /* the second where one is NaN */
            _mm512_mask_storeu_ps(out + r * cols + 16 * half, mask, y);
        }
    }
}

#define CALL(count)                                                                              \
    case count:                                                                                  \
        vnni_tile(count, q, row_scale, w, base, scales, bias, out, cols, width, groups, relu);   \
        break;

VNNI static void vnni_rows(long rows, const uint8_t *q, const float *row_scale, const int8_t *w,
                           const int32_t *base, const float *scales, const float *bias, float *out,
                           long cols, long width, long groups, int relu) {
    for (long r = 0; r < rows; r += ROWS) {
        switch (rows - r < ROWS ? rows - r : ROWS) {
            CALL(1) CALL(2) CALL(3) CALL(4) CALL(5) CALL(6)
            CALL(7) CALL(8) CALL(9) CALL(10) CALL(11) CALL(12)
        }
        q += ROWS * groups * GROUP, row_scale += ROWS, out += ROWS * cols;
    }
}
#endif

/* sum (32) += q (4 groups) by a panel. */
#ifdef __AVX2__
static void add_panel(int32_t *sum, const uint8_t *q, const int8_t *w, long groups) {
    __m256i part[8]; /* of 4 columns each: two halves of each sum */
    for (int j = 0; j < 8; j++) part[j] = _mm256_setzero_si256();
    for (long g = 0; g < groups; g++, q += GROUP, w += COLUMNS * GROUP) {
        int32_t four;
        memcpy(&four, q, 4);
        const __m256i x = _mm256_cvtepu8_epi16(_mm_set1_epi32(four));
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            const __m128i b = _mm_loadu_si128((const __m128i *)(w + 16 * j));
            part[j] = _mm256_add_epi32(part[j], _mm256_madd_epi16(x, _mm256_cvtepi8_epi16(b)));
        }
    }
    for (int j = 0; j < 8; j++) {
        int32_t halves[8];
        _mm256_storeu_si256((__m256i *)halves, part[j]);
        for (int c = 0; c < 4; c++) sum[4 * j + c] += halves[2 * c] + halves[2 * c + 1];
    }
}
#else
static void add_panel(int32_t *sum, const uint8_t *q, const int8_t *w, long groups) {
    for (long g = 0; g < groups; g++, q += GROUP, w += COLUMNS * GROUP)
        for (int c = 0; c < COLUMNS; c++)
            sum[c] += q[0] * w[4 * c] + q[1] * w[4 * c + 1] + q[2] * w[4 * c + 2] +
                      q[3] * w[4 * c + 3];
}
#endif

/* One panel of columns, of which `width` exist. */
static void plain_rows(long rows, const uint8_t *q, const float *row_scale, const int8_t *w,
                       const int32_t *base, const float *scales, const float *bias, float *out,
                       long cols, long width, long groups, int relu) {
    for (long r = 0; r < rows; r++, q += groups * GROUP, out += cols) {
        int32_t sum[COLUMNS];
        memcpy(sum, base, sizeof sum);
        add_panel(sum, q, w, groups);
        for (long c = 0; c < width; c++) {
            const float y = (float)sum[c] * (scales[c] * row_scale[r]) + (bias ? bias[c] : 0);
            out[c] = relu && y < 0 ? 0 : y;
        }
    }
}

/* out (rows, cols) = act(q (rows, 4 groups) by all panels). */
static void product(long rows, const uint8_t *q, const float *row_scale, const int8_t *w,
                    const int32_t *base, const float *scales, const float *bias, float *out,
                    long cols, long groups, int relu) {
    void (*one)(long, const uint8_t *, const float *, const int8_t *, const int32_t *,
                const float *, const float *, float *, long, long, long, int) = plain_rows;
#ifdef VNNI
    if (__builtin_cpu_supports("avx512vnni")) one = vnni_rows;
#endif
    for (long c = 0; c < cols; c += COLUMNS)
        one(rows, q, row_scale, w + c * groups * GROUP, base + c, scales + c, bias ? bias + c : 0,
            out + c, cols, cols - c < COLUMNS ? cols - c : COLUMNS, groups, relu);
}

/* q = round(x * 127 / max |x|) + 128, and the scale that undoes it: NaN where x is not finite. */
static float quantize(const float *x, uint8_t *q, long n) {
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
    if (zero || bad) {
        for (long i = 0; i < n; i++) q[i] = 128;
        return bad ? NAN : 0;
    }
    const float inverse = 127.0f / peak;
    for (long i = 0; i < n; i++) q[i] = (uint8_t)((int32_t)__builtin_rintf(x[i] * inverse) + 128);
    return peak / 127.0f;
}

/* out (rows, cols) = act(x (rows, k) @ w (k, cols) + bias), one scale for each row of x. */
int mpidl_int8_dense_f32(const float *x, const int8_t *w, const int32_t *base, const float *scales,
                         const float *bias, float *out, long rows, long cols, long k, long panels,
                         long groups, int relu) {
    (void)panels;
    const long width = groups * GROUP, each = BLOCK * (width + 4);
    uint8_t *memory = mpidl_scratch(SCRATCH_OTHER, (size_t)(mpidl_threads * each));
    if (!memory) return MPIDL_NO_MEMORY;
    PARALLEL {
        float *row_scale = (float *)(memory + THREAD * each);
        uint8_t *q = (uint8_t *)(row_scale + BLOCK);
        SHARED_FOR
        for (long low = 0; low < rows; low += BLOCK) {
            const long count = rows - low < BLOCK ? rows - low : BLOCK;
            for (long r = 0; r < count; r++) {
                row_scale[r] = quantize(x + (low + r) * k, q + r * width, k);
                memset(q + r * width + k, 0, (size_t)(width - k)); /* their weights are 0 */
            }
            product(count, q, row_scale, w, base, scales, bias, out + low * cols, cols, groups,
                    relu);
        }
    }
    return 0;
}

/* The kd x kh x kw x c bytes below one output pixel; outside the image 128, which stands for 0. */
static void gather(const uint8_t *image, uint8_t *out, const conv_geometry *g, long pixel) {
    const long x0 = pixel % g->ow * g->sw - g->pw, y0 = pixel / g->ow % g->oh * g->sh - g->ph;
    const long z0 = pixel / (g->ow * g->oh) * g->sd - g->pd, c = g->c, run = g->kw * c;
    const int inside = g->dw == 1 && x0 >= 0 && x0 + g->kw <= g->w;
    for (long kz = 0; kz < g->kd; kz++)
        for (long ky = 0; ky < g->kh; ky++, out += run) {
            const long z = z0 + kz * g->dd, y = y0 + ky * g->dh;
            if (z < 0 || z >= g->d || y < 0 || y >= g->h) {
                memset(out, 128, (size_t)run);
                continue;
            }
            const uint8_t *row = image + (z * g->h + y) * g->w * c;
            if (inside) {
                memcpy(out, row + x0 * c, (size_t)run);
                continue;
            }
            for (long kx = 0; kx < g->kw; kx++) {
                const long at = x0 + kx * g->dw;
                if (at < 0 || at >= g->w)
                    memset(out + kx * c, 128, (size_t)c);
                else
                    memcpy(out + kx * c, row + at * c, (size_t)c);
            }
        }
}

/* out = act(x convolved with w + bias), one group of channels, one scale for each image of x. */
int mpidl_int8_conv_f32(const float *x, const int8_t *w, const int32_t *base, const float *scales,
                        const float *bias, float *out, const conv_geometry *g, long panels,
                        long groups, int relu) {
    (void)panels;
    const long size = g->d * g->h * g->w * g->c, pixels = g->od * g->oh * g->ow;
    const long width = groups * GROUP, k = g->kd * g->kh * g->kw * g->c;
    const long each = (BLOCK * (width + 4) + size + 63) & ~63L;
    uint8_t *memory = mpidl_scratch(SCRATCH_OTHER, (size_t)(mpidl_threads * each));
    if (!memory) return MPIDL_NO_MEMORY;
    PARALLEL {
        float *row_scale = (float *)(memory + THREAD * each);
        uint8_t *q = (uint8_t *)(row_scale + BLOCK), *image = q + BLOCK * width;
        SHARED_FOR
        for (long n = 0; n < g->n; n++) {
            const float scale = quantize(x + n * size, image, size);
            for (long r = 0; r < BLOCK; r++) row_scale[r] = scale;
            for (long low = 0; low < pixels; low += BLOCK) {
                const long count = pixels - low < BLOCK ? pixels - low : BLOCK;
                for (long r = 0; r < count; r++) {
                    gather(image, q + r * width, g, low + r);
                    memset(q + r * width + k, 0, (size_t)(width - k));
                }
                product(count, q, row_scale, w, base, scales, bias,
                        out + (n * pixels + low) * g->outputs, g->outputs, groups, relu);
            }
        }
    }
    return 0;
}
