/* Quantizing and selecting gradients. All arrays are float32 on the full side.

   Random numbers come from a hash of (seed, position): the same on every processor, no state
   (Salmon et al., 2011, for the idea). */
#include "half.h"
#include "mpidl.h"
#ifdef __F16C__
#include <immintrin.h>
#endif

static inline uint32_t hashed(uint32_t seed,
                              uint32_t i) { /* lowbias32 of Wellons (2018) over a Weyl sequence */
    uint32_t x = i * 0x9e3779b9u + seed;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

static inline uint32_t bits_of(float x) {
    uint32_t b;
    memcpy(&b, &x, 4);
    return b;
}

static inline float float_of(uint32_t b) {
    float x;
    memcpy(&x, &b, 4);
    return x;
}

/* x -> q = round(x / scale) with stochastic rounding; scale = max |x| of each block / 127. A block
   that is not finite gets scale NaN. Magnitudes are compared as integers, which orders them the
   same way and lets the compiler use vectors. */
int mpidl_int8_pack_f32(const float *x, float *scales, int8_t *q, long n, long block, long blocks,
                        long seed) {
    (void)blocks;
    for (int64_t b = 0, at = 0; at < n; at += block, b++) {
        int64_t m = n - at < block ? n - at : block;
        uint32_t top = 0;
        for (int64_t i = 0; i < m; i++) {
            uint32_t a = bits_of(x[at + i]) & 0x7fffffff;
            top = a > top ? a : top;
        }
        if (top >= 0x7f800000) {
            scales[b] = float_of(0x7fc00000);
            memset(q + at, 1, m);
            continue;
        }
        float peak = float_of(top), inverse = peak > 1e-37f ? 127.0f / peak : 0;
        scales[b] = inverse > 0 ? peak / 127.0f : 0;
        for (int64_t i = 0; i < m; i++) {
            float u = (float)(int32_t)(hashed((uint32_t)seed, (uint32_t)(at + i)) >> 8) *
                      (1.0f / 16777216.0f);
            int32_t t = (int32_t)(x[at + i] * inverse + u + 256.0f) - 256; /* floor */
            q[at + i] = (int8_t)(t > 127 ? 127 : t);
        }
    }
    return 0;
}

/* y = q * scale, or y += sign * q * scale where sign is not 0 */
int mpidl_int8_unpack_f32(const float *scales, const int8_t *q, float *y, long n, long block,
                          long blocks, int sign) {
    (void)blocks;
    for (int64_t b = 0, at = 0; at < n; at += block, b++) {
        int64_t m = n - at < block ? n - at : block;
        float s = scales[b];
        if (sign)
            for (int64_t i = 0; i < m; i++) y[at + i] += s * (float)sign * (float)q[at + i];
        else
            for (int64_t i = 0; i < m; i++) y[at + i] = s * (float)q[at + i];
    }
    return 0;
}

/* One bit each (1: not negative), lowest bit first; scale = mean |x| of each block. block is a
 * multiple of 8. */
int mpidl_sign_pack_f32(const float *x, float *scales, uint8_t *bits, long n, long block,
                        long blocks, long bytes) {
    (void)blocks;
    (void)bytes;
    for (int64_t b = 0, at = 0; at < n; at += block, b++) {
        int64_t m = n - at < block ? n - at : block;
        float sums[8] = {0}, sum = 0;
        for (int64_t i = 0; i < m; i += 8) {
            int64_t left = m - i < 8 ? m - i : 8;
            const float *v = x + at + i;
            uint32_t byte = 0;
            for (int64_t j = 0; j < left; j++) {
                sums[j] += fabsf(v[j]);
                byte |= (uint32_t)(v[j] >= 0) << j;
            }
            bits[(at + i) / 8] = (uint8_t)byte;
        }
        for (int j = 0; j < 8; j++) sum += sums[j];
        scales[b] = sum / (float)m;
    }
    return 0;
}

int mpidl_sign_unpack_f32(const float *scales, const uint8_t *bits, float *y, long n, long block,
                          long blocks, long bytes, int sign) {
    (void)blocks;
    (void)bytes;
    for (int64_t b = 0, at = 0; at < n; at += block, b++) {
        int64_t m = n - at < block ? n - at : block;
        uint32_t s = bits_of(sign < 0 ? -scales[b] : scales[b]);
        for (int64_t i = 0; i < m; i += 8) {
            int64_t left = m - i < 8 ? m - i : 8;
            float *v = y + at + i, keep = sign ? 1.0f : 0.0f;
            uint32_t byte = (uint32_t)~bits[(at + i) / 8];
            if (left == 8)
                for (int j = 0; j < 8; j++)
                    v[j] = (sign ? v[j] : 0.0f) + float_of(s ^ ((byte >> j & 1) << 31));
            else
                for (int64_t j = 0; j < left; j++)
                    v[j] = v[j] * keep + float_of(s ^ ((byte >> j & 1) << 31));
        }
    }
    return 0;
}

/* v += r; r = v; */
int mpidl_add_and_keep_f32(float *restrict v, float *restrict r, long n) {
    for (int64_t i = 0; i < n; i++) {
        float sum = v[i] + r[i];
        v[i] = sum;
        r[i] = sum;
    }
    return 0;
}

enum { BINS = 1 << 16, STRIDE = 16 };

static inline uint32_t class_of(float x) {
    return (bits_of(x) & 0x7fffffff) >> 15;
}

/* The class such that `wanted` of the counted elements are in it or above; *above gets how many are
 * above it. */
static int64_t cut(const uint32_t *count, int64_t wanted, int64_t *above) {
    int64_t bin = BINS - 1;
    *above = 0;
    while (bin > 0 && *above + count[bin] < wanted) *above += count[bin--];
    return bin;
}

enum { WIDE = 32 };

/* Whether any of the WIDE magnitudes reaches the bar. */
static inline int any_reaches(const float *x, uint32_t bar) {
    uint32_t any = 0;
    for (int j = 0; j < WIDE; j++) any |= (uint32_t)-((bits_of(x[j]) & 0x7fffffff) >= bar);
    return any != 0;
}

static inline int64_t collect_block(const float *x, int64_t at, int64_t m, uint32_t bar,
                                    int32_t *index, int64_t found) {
    for (int64_t i = at; i < at + m; i++)
        if ((bits_of(x[i]) & 0x7fffffff) >= bar) index[found++] = (int32_t)i;
    return found;
}

/* Elements of class `least` and above, at most `room`; -1 if there are more. */
static int64_t collect(const float *x, int64_t n, int64_t least, int32_t *index, int64_t room) {
    uint32_t bar = (uint32_t)(least << 15);
    int64_t found = 0;
    for (int64_t at = 0; at < n; at += WIDE) {
        int64_t m = n - at < WIDE ? n - at : WIDE;
        if (m == WIDE && !any_reaches(x + at, bar)) continue;
        if (found + m > room) return -1;
        found = collect_block(x, at, m, bar, index, found);
    }
    return found;
}

/* The k largest of the candidates, if there are so many; *last gets the class of the smallest.
 * index may be candidate itself. */
static int64_t choose(const float *x, const int32_t *candidate, int64_t near, int64_t k,
                      uint32_t *count, int32_t *index, float *value, int64_t *last) {
    int64_t above, found = 0;
    if (near < k) return -1;
    memset(count, 0, BINS * sizeof *count);
    for (int64_t i = 0; i < near; i++) count[class_of(x[candidate[i]])]++;
    int64_t bin = cut(count, k, &above), ties = k - above;
    for (int64_t i = 0; i < near && found < k; i++) {
        int64_t mine = class_of(x[candidate[i]]);
        if (mine > bin || (mine == bin && ties-- > 0)) index[found++] = candidate[i];
    }
    if (value) {
        for (int64_t i = 0; i < found; i++) value[i] = x[index[i]];
    }
    *last = bin;
    return found;
}

/* As collect, of x + residual, which replaces both. Where there are too many, those that are not
 * among the k largest go. */
static int64_t add_and_collect(float *restrict x, float *restrict residual, int64_t n,
                               int64_t least, int32_t *index, int64_t room, int64_t k,
                               uint32_t *count) {
    uint32_t bar = (uint32_t)(least << 15);
    int64_t found = least ? 0 : -1;
    for (int64_t at = 0; at < n; at += WIDE) {
        int64_t m = n - at < WIDE ? n - at : WIDE;
        if (m == WIDE) {
            for (int64_t i = at; i < at + WIDE; i++) {
                float sum = x[i] + residual[i];
                x[i] = sum;
                residual[i] = sum;
            }
            if (!any_reaches(x + at, bar)) continue;
        } else {
            for (int64_t i = at; i < n; i++) {
                x[i] += residual[i];
                residual[i] = x[i];
            }
        }
        if (found < 0) continue;
        if (found + WIDE > room) {
            found = choose(x, index, found, k, count, index, NULL, &least);
            bar = (uint32_t)(least << 15);
        }
        found = collect_block(x, at, m, bar, index, found);
    }
    return found;
}

static int64_t room_for(int64_t n, int64_t k) {
    return n < 3 * k + 4096 ? n + 16 : 3 * k + 4096;
}

/* The k elements of the largest magnitude: their indices, ascending, and values. Magnitudes are
   told apart by the upper 16 of their 31 bits; within the last such class the first ones are taken.
   A NaN counts as largest. Returns k, or -1 without memory. A sample tells which elements are worth
   a closer look; if it misled, all are looked at. */
static int64_t find_topk(const float *x, int64_t n, int64_t k, int32_t *index, float *value) {
    int64_t room = room_for(n, k), above, last, near = -1, found = -1;
    uint32_t *count = calloc(BINS, sizeof *count);
    int32_t *candidate = malloc((size_t)room * sizeof *candidate);
    if (n > 16 * BINS && count && candidate) {
        for (int64_t i = 0; i < n; i += STRIDE) count[class_of(x[i])]++;
        near = collect(x, n, cut(count, k / STRIDE * 5 / 4 + 64, &above), candidate, room);
    }
    if (near < k && candidate) {
        int32_t *larger = realloc(candidate, (size_t)(n + 16) * sizeof *candidate);
        if (larger) {
            candidate = larger;
            near = collect(x, n, 0, candidate, n + 16);
        }
    }
    if (count && candidate) found = choose(x, candidate, near, k, count, index, value, &last);
    free(count);
    free(candidate);
    return found;
}

/* x += residual; residual = x without what is chosen; and the top k of x as above, in one pass if
 *hint, a class that they surpass, is still right. The hint is renewed; 0 is none. */
int mpidl_topk_feedback_f32(float *restrict x, float *restrict residual, uint32_t *hint,
                            int32_t *index, float *value, long n, long k) {
    int64_t room = room_for(n, k), last = 0, found = -1;
    uint32_t *count = malloc(BINS * sizeof *count);
    int32_t *candidate = malloc((size_t)room * sizeof *candidate);
    int64_t near =
        add_and_collect(x, residual, n, candidate && count ? *hint : 0, candidate, room, k, count);
    if (count && candidate) found = choose(x, candidate, near, k, count, index, value, &last);
    if (found != k) found = find_topk(x, n, k, index, value);
    free(count);
    free(candidate);
    if (found == k && last == 0) /* by way of find_topk */
        for (int64_t i = 0; i < k; i++)
            last = i == 0 || class_of(value[i]) < last ? class_of(value[i]) : last;
    *hint = last > 160 ? (uint32_t)last - 128
                       : 0; /* 256 classes are a factor of two: 0.7 times the smallest chosen */
    return found == k ? 0 : MPIDL_NO_MEMORY;
}

int mpidl_topk_f32(const float *x, int32_t *index, float *value, long n, long k) {
    return find_topk(x, n, k, index, value) == k ? 0 : MPIDL_NO_MEMORY;
}

/* Indices (ascending) and values into a packet of `room` steps from one index to the next, less
   one, in 16 bits, and then `room` values in bfloat16. Where a step is too long there are stops of
   value zero on the way; what is left of the room is zero. */
int mpidl_topk_pack_f32(const int32_t *index, const float *value, uint16_t *packet, long k,
                        long room) {
    int64_t last = -1, used = 0;
    memset(packet, 0, (size_t)room * 4);
    for (int64_t i = 0; i < k; i++, used++) {
        int64_t step = index[i] - last - 1;
        for (; step > 0xffff; step -= 0x10000) packet[used++] = 0xffff;
        uint32_t b = bits_of(value[i]);
        packet[used] = (uint16_t)step;
        packet[room + used] = (uint16_t)(value[i] != value[i] ? (b >> 16) | 0x40
                                                              : (b + 0x7fff + (b >> 16 & 1)) >> 16);
        last = index[i];
    }
    return 0;
}

/* y[index] += sign * value for all of a packet. all_finite: whether all
   values are finite; an index beyond n ends it. */
int mpidl_topk_unpack_f32(const uint16_t *packet, float *y, uint8_t *all_finite, long room, long n,
                          int sign) {
    const float factor = (float)sign;
    int finite = 1;
    for (int64_t i = 0, at = -1; i < room; i++) {
        uint16_t h = packet[room + i];
        at += packet[i] + 1;
        if (at >= n) break;
        if (!(h & 0x7fff)) continue;
        finite &= (h & 0x7f80) != 0x7f80;
        y[at] += factor * float_of((uint32_t)h << 16);
    }
    *all_finite = (uint8_t)finite;
    return 0;
}

/* float32 (n) to 16-bit floats: bfloat16 or IEEE binary16. Beyond the range of the latter:
 * infinity. */
int mpidl_half_pack_f32(const float *x, uint16_t *out, long n, int bf16) {
    int64_t i = 0;
    if (bf16) {
        for (; i < n; i++) out[i] = float_bf16(x[i]);
        return 0;
    }
#ifdef __F16C__
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(out + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; i++) out[i] = float_f16(x[i]);
    return 0;
}

/* 16-bit floats (n) to y, or `sign` times onto y where sign is not 0. */
int mpidl_half_unpack_f32(const uint16_t *x, float *y, long n, int bf16, int sign) {
    const float keep = sign ? 1 : 0, factor = sign ? (float)sign : 1;
    int64_t i = 0;
    if (bf16) {
        for (; i < n; i++) y[i] = (keep ? y[i] : 0) + factor * bf16_float(x[i]);
        return 0;
    }
#ifdef __F16C__
    for (; i + 8 <= n; i += 8) {
        __m256 wide = _mm256_mul_ps(_mm256_set1_ps(factor),
                                    _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
        _mm256_storeu_ps(y + i, keep ? _mm256_add_ps(_mm256_loadu_ps(y + i), wide) : wide);
    }
#endif
    for (; i < n; i++) y[i] = (keep ? y[i] : 0) + factor * f16_float(x[i]);
    return 0;
}
