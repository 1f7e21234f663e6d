/* 16-bit floats, bfloat16 and IEEE binary16, to float32 and back, rounded to nearest, ties to even.
 */
#pragma once
#include <stdint.h>

static inline float bf16_float(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)h << 16};
    return v.f;
}

static inline uint16_t float_bf16(float f) { /* to nearest, ties to even */
    union {
        float f;
        uint32_t u;
    } v = {f};
    if (f != f) return (uint16_t)((v.u >> 16) | 0x40);
    return (uint16_t)((v.u + 0x7fff + ((v.u >> 16) & 1)) >> 16);
}

static inline float f16_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    union {
        uint32_t u;
        float f;
    } v, scale = {0x77800000}; /* 2^112 */
    v.u = rest << 13;
    if (rest >= 0x7c00)
        v.u |= 0x7f800000;
    else
        v.f *= scale.f; /* also normalizes subnormal numbers */
    v.u |= sign;
    return v.f;
}

static inline uint16_t float_f16(float f) { /* to nearest, ties to even */
    union {
        float f;
        uint32_t u;
    } v = {f}, shift;
    uint16_t sign = (uint16_t)((v.u >> 16) & 0x8000);
    v.u &= 0x7fffffff;
    if (v.u > 0x7f800000) return sign | 0x7e00;
    if (v.u >= 0x477ff000) return sign | 0x7c00;
    if (v.u < 0x38800000) { /* subnormal: let the float adder round */
        shift.u = 0x3f000000;
        v.f += shift.f;
        return sign | (uint16_t)(v.u - shift.u);
    }
    return sign | (uint16_t)((v.u - 0x38000000 + 0xfff + ((v.u >> 13) & 1)) >> 13);
}
