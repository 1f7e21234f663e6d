/* Quantising and selecting gradients. All arrays are float32 on the full side.

   Random numbers come from a hash of (seed, position): the same on every processor, no state (Salmon et al., 2011, for the idea). */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static inline uint32_t hashed(uint32_t seed, uint32_t i) { /* lowbias32 of Wellons (2018) over a Weyl sequence */
    uint32_t x = i * 0x9e3779b9u + seed;
    x ^= x >> 16, x *= 0x7feb352du;
    x ^= x >> 15, x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

/* x -> q = round(x / scale) with stochastic rounding; scale = max |x| of each block / 127. A block that is not finite gets scale NaN. */
void mpidl_int8_pack(const float *x, int64_t n, int64_t block, uint32_t seed, float *scales, int8_t *q) {
    for (int64_t b = 0, at = 0; at < n; at += block, b++) {
        int64_t m = n - at < block ? n - at : block;
        float peak = 0, poison = 0;
        for (int64_t i = 0; i < m; i++) {
            float a = fabsf(x[at + i]);
            peak = a > peak ? a : peak;
            poison += x[at + i] * 0.0f; /* NaN where a value is not finite */
        }
        scales[b] = peak / 127.0f + poison;
        float inverse = peak > 0 && poison == 0 ? 127.0f / peak : 0;
        for (int64_t i = 0; i < m; i++) {
            float u = (float)(hashed(seed, (uint32_t)(at + i)) >> 8) * (1.0f / 16777216.0f);
            float y = poison == 0 ? x[at + i] * inverse + u : 0; /* floor(y), y > -128 */
            int32_t t = (int32_t)(y + 256.0f) - 256;
            q[at + i] = (int8_t)(t > 127 ? 127 : t);
        }
    }
}

/* y = (or, if `add`, +=) q * scale */
void mpidl_int8_unpack(const float *scales, const int8_t *q, int64_t n, int64_t block, int add, float *y) {
    for (int64_t b = 0, at = 0; at < n; at += block, b++) {
        int64_t m = n - at < block ? n - at : block;
        float s = scales[b];
        if (add) for (int64_t i = 0; i < m; i++) y[at + i] += s * (float)q[at + i];
        else for (int64_t i = 0; i < m; i++) y[at + i] = s * (float)q[at + i];
    }
}

/* One bit each (1: not negative), lowest bit first; scale = mean |x| of each block. block is a multiple of 8. */
void mpidl_sign_pack(const float *x, int64_t n, int64_t block, float *scales, uint8_t *bits) {
    memset(bits, 0, (n + 7) / 8);
    for (int64_t b = 0, at = 0; at < n; at += block, b++) {
        int64_t m = n - at < block ? n - at : block;
        float sum = 0;
        for (int64_t i = 0; i < m; i++) sum += fabsf(x[at + i]);
        scales[b] = sum / (float)m;
        for (int64_t i = 0; i < m; i++) bits[(at + i) / 8] |= (uint8_t)((x[at + i] >= 0) << ((at + i) & 7));
    }
}

void mpidl_sign_unpack(const float *scales, const uint8_t *bits, int64_t n, int64_t block, int add, float *y) {
    for (int64_t b = 0, at = 0; at < n; at += block, b++) {
        int64_t m = n - at < block ? n - at : block;
        float s = scales[b];
        for (int64_t i = at; i < at + m; i++) {
            float v = (bits[i / 8] >> (i & 7)) & 1 ? s : -s;
            y[i] = add ? y[i] + v : v;
        }
    }
}

/* The k elements of the largest magnitude: their indices, ascending, and values. Magnitudes are told apart by the upper 16 of
   their 31 bits; within the last such class the first ones are taken. A NaN counts as largest. Returns k, or -1 without memory. */
int64_t mpidl_topk(const float *x, int64_t n, int64_t k, int32_t *index, float *value) {
    enum { BINS = 1 << 16 };
    uint32_t *count = calloc(BINS, sizeof *count), bits;
    if (!count) return -1;
    for (int64_t i = 0; i < n; i++) {
        memcpy(&bits, x + i, 4);
        count[(bits & 0x7fffffff) >> 15]++;
    }
    int64_t above = 0, bin = BINS - 1;
    while (bin > 0 && above + count[bin] < k) above += count[bin--];
    int64_t ties = k - above, found = 0;
    for (int64_t i = 0; i < n && found < k; i++) {
        memcpy(&bits, x + i, 4);
        int64_t mine = (bits & 0x7fffffff) >> 15;
        if (mine > bin || (mine == bin && ties-- > 0)) index[found] = (int32_t)i, value[found++] = x[i];
    }
    free(count);
    return found;
}

/* y[index] += value */
void mpidl_scatter_add(const int32_t *index, const float *value, int64_t k, float *y) {
    for (int64_t i = 0; i < k; i++) y[index[i]] += value[i];
}
