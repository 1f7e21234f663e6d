// Augmentation of a batch. What is drawn for a sample is a function of (seed, epoch, number of the
// sample) alone, by Philox4x32-10, as in kernels/cpu/augment_impl.h.
enum { DRAW_MOVE = 0x41550000, DRAW_MIRROR, DRAW_CUTOUT, DRAW_JITTER, DRAW_MIX };
#define DRAW_NOISE 0x80000000u  // and the number of 4 elements

__device__ inline void draw(unsigned *words, i64 seed, i64 epoch, i64 sample, unsigned stream) {
    words[0] = (unsigned)sample;
    words[1] = (unsigned)((unsigned long long)sample >> 32);
    words[2] = (unsigned)epoch;
    words[3] = stream;
    philox(words, seed);
}

// A whole number below `count`.
__device__ inline i64 below(unsigned word, i64 count) {
    return (i64)(((unsigned long long)word * (unsigned long long)count) >> 32);
}

// Where a sample's elements come from; see augment_impl.h.
struct Placement {
    i64 shift_d, shift_h, shift_w;
    bool swap, mirrored_h, mirrored_w;
};

__device__ inline Placement place(const augment_geometry &g, i64 seed, i64 epoch, i64 sample) {
    unsigned move[4], mirror[4];
    draw(move, seed, epoch, sample, DRAW_MOVE);
    Placement p;
    p.shift_d = g.low_d + below(move[0], g.spread_d);
    p.shift_h = g.low_h + below(move[1], g.spread_h);
    p.shift_w = g.low_w + below(move[2], g.spread_w);
    p.swap = (g.turn & 1) && (move[3] & 1);
    p.mirrored_h = g.turn && (move[3] & 2);
    p.mirrored_w = g.turn == 1 ? p.mirrored_h != p.swap : g.turn && (move[3] & 4);
    if (g.mirror_h || g.mirror_w) {
        draw(mirror, seed, epoch, sample, DRAW_MIRROR);
        const bool h = mirror[0] < g.mirror_h, w = mirror[1] < g.mirror_w;
        p.mirrored_h ^= p.swap ? w : h;
        p.mirrored_w ^= p.swap ? h : w;
    }
    return p;
}

// The element within [0, size) that stands for `at`; -1 where there is none.
__device__ inline i64 fold(i64 at, i64 size, i64 edge) {
    if (at >= 0 && at < size) return at;
    if (edge == EDGE_WRAP) return (at % size + size) % size;
    if (edge == EDGE_REFLECT) return at < 0 ? -at : 2 * (size - 1) - at;
    return edge == EDGE_NEAREST ? (at < 0 ? 0 : size - 1) : -1;
}

// The place 2^-32 * word of the way through a table of `count` numbers up to 2^30.
__device__ inline i64 quantile(const i64 *table, i64 count, unsigned word) {
    const unsigned long long at = (unsigned long long)word * (unsigned long long)(count - 1);
    const i64 low = table[at >> 32], step = table[(at >> 32) + 1] - low;
    return low + ((step * (i64)(unsigned)at) >> 32);
}

template <class Given>
__device__ inline void gather(const Given *x, REAL *out, const i64 *samples, i64 seed, i64 epoch,
                              const augment_geometry &g, ACC scale, ACC shift, ACC fill) {
    FOR_EACH(pixel, g.n * g.od * g.oh * g.ow) {
        const i64 j = pixel % g.ow, i = pixel / g.ow % g.oh, d = pixel / (g.ow * g.oh) % g.od,
                  n = pixel / (g.ow * g.oh * g.od);
        const Placement p = place(g, seed, epoch, samples[n]);
        const i64 h = p.swap ? j : i, w = p.swap ? i : j;
        const i64 from_d = fold(d + p.shift_d, g.d, g.edge_d),
                  from_h = fold((p.mirrored_h ? g.oh - 1 - h : h) + p.shift_h, g.h, g.edge_h),
                  from_w = fold((p.mirrored_w ? g.ow - 1 - w : w) + p.shift_w, g.w, g.edge_w);
        const bool inside = from_d >= 0 && from_h >= 0 && from_w >= 0;
        const i64 from = ((n * g.d + from_d) * g.h + from_h) * g.w + from_w;
        for (i64 k = 0; k < g.c; k++)
            out[pixel * g.c + k] = inside ? ACC(x[from * g.c + k]) * scale + shift : fill;
    }
}

extern "C" __global__ void augment_gather(const REAL *x, REAL *out, const i64 *samples, i64 seed,
                                          i64 epoch, augment_geometry g, ACC scale, ACC shift,
                                          ACC fill) {
    gather(x, out, samples, seed, epoch, g, scale, shift, fill);
}

extern "C" __global__ void augment_gather_u8(const u8 *x, REAL *out, const i64 *samples, i64 seed,
                                             i64 epoch, augment_geometry g, ACC scale, ACC shift,
                                             ACC fill) {
    gather(x, out, samples, seed, epoch, g, scale, shift, fill);
}

extern "C" __global__ void augment_vectors(REAL *x, const i64 *samples, const i64 *vectors,
                                           i64 count, i64 seed, i64 epoch, augment_geometry g,
                                           ACC shift) {
    const i64 pixels = g.od * g.oh * g.ow;
    FOR_EACH(pixel, g.n * pixels) {
        const Placement p = place(g, seed, epoch, samples[pixel / pixels]);
        for (i64 k = 0; k < count; k++) {
            REAL *u = x + pixel * g.c + vectors[2 * k], *v = x + pixel * g.c + vectors[2 * k + 1];
            const ACC along_h = p.mirrored_h ? ACC(2) * shift - ACC(*u) : ACC(*u),
                      along_w = p.mirrored_w ? ACC(2) * shift - ACC(*v) : ACC(*v);
            *u = p.swap ? along_w : along_h;
            *v = p.swap ? along_h : along_w;
        }
    }
}

extern "C" __global__ void augment_cutout(REAL *x, const i64 *samples, i64 seed, i64 epoch, i64 n,
                                          i64 h, i64 w, i64 c, i64 size, i64 chance) {
    FOR_EACH(item, n * size * size) {
        const i64 j = item % size, i = item / size % size, k = item / (size * size);
        unsigned words[4];
        draw(words, seed, epoch, samples[k], DRAW_CUTOUT);
        const i64 row = below(words[0], h) - size / 2 + i, col = below(words[1], w) - size / 2 + j;
        if (words[2] < chance && row >= 0 && row < h && col >= 0 && col < w)
            for (i64 b = 0; b < c; b++) x[((k * h + row) * w + col) * c + b] = ACC(0);
    }
}

// One block a sample.
extern "C" __global__ void augment_mixup(REAL *x, const REAL *other, ACC *share, const i64 *table,
                                         const i64 *samples, i64 seed, i64 epoch, i64 n, i64 size,
                                         i64 count, i64 chance) {
    for (i64 k = blockIdx.x; k < n; k += gridDim.x) {
        unsigned words[4];
        draw(words, seed, epoch, samples[k], DRAW_MIX);
        const bool mixed = words[1] < chance;
        const ACC own = mixed ? ACC(quantile(table, count, words[0])) / ACC(1 << 30) : ACC(1);
        if (threadIdx.x == 0) share[k] = own;
        if (mixed)
            for (i64 i = k * size + threadIdx.x; i < (k + 1) * size; i += blockDim.x)
                x[i] = own * ACC(x[i]) + (ACC(1) - own) * ACC(other[i]);
    }
}

// One block a sample.
extern "C" __global__ void augment_cutmix(REAL *x, const REAL *other, ACC *share, const i64 *table,
                                          const i64 *samples, i64 seed, i64 epoch, i64 n, i64 h,
                                          i64 w, i64 c, i64 count, i64 chance) {
    for (i64 k = blockIdx.x; k < n; k += gridDim.x) {
        unsigned words[4];
        draw(words, seed, epoch, samples[k], DRAW_MIX);
        const i64 side = words[1] < chance ? quantile(table, count, words[0]) : 0,
                  high = (h * side) >> 30, wide = (w * side) >> 30,
                  top = below(words[2], h) - high / 2, left = below(words[3], w) - wide / 2;
        const i64 i0 = top < 0 ? 0 : top, i1 = top + high > h ? h : top + high,
                  j0 = left < 0 ? 0 : left, j1 = left + wide > w ? w : left + wide,
                  row = (j1 - j0) * c;
        if (threadIdx.x == 0) share[k] = ACC(h * w - (i1 - i0) * (j1 - j0)) / ACC(h * w);
        for (i64 e = threadIdx.x; e < (i1 - i0) * row; e += blockDim.x) {
            const i64 at = ((k * h + i0 + e / row) * w + j0) * c + e % row;
            x[at] = other[at];
        }
    }
}

__device__ inline ACC factor(unsigned word, ACC spread) {
    return ACC(1) + spread * (ACC(2) * (ACC(word) / ACC(4294967296.0)) - ACC(1));
}

__device__ inline ACC gray_of(const REAL *pixel, i64 c) {
    if (c == 3) return ACC(0.299) * pixel[0] + ACC(0.587) * pixel[1] + ACC(0.114) * pixel[2];
    ACC sum = ACC(0);
    for (i64 j = 0; j < c; j++) sum += pixel[j];
    return sum / ACC(c);
}

// See augment_impl.h. One warp an image; blocks of (32, images per block).
extern "C" __global__ void augment_jitter(REAL *x, const i64 *samples, i64 seed, i64 epoch, i64 n,
                                          i64 pixels, i64 c, ACC black, ACC brightness,
                                          ACC contrast, ACC saturation) {
    FOR_ROWS(k, n) {
        REAL *image = x + k * pixels * c;
        unsigned words[4];
        draw(words, seed, epoch, samples[k], DRAW_JITTER);
        const ACC bright = factor(words[0], brightness), harsh = factor(words[1], contrast),
                  vivid = factor(words[2], saturation);
        ACC sum = ACC(0);
        for (i64 i = threadIdx.x; i < pixels; i += WARP) sum += gray_of(image + i * c, c);
        const ACC mean = black + bright * (all_lanes(sum) / ACC(pixels) - black);
        const ACC scale = bright * harsh,
                  shift = harsh * black * (ACC(1) - bright) + (ACC(1) - harsh) * mean;
        for (i64 i = threadIdx.x; i < pixels; i += WARP) {
            REAL *pixel = image + i * c;
            const ACC gray = scale * gray_of(pixel, c) + shift, part = c == 3 ? vivid : ACC(1);
            for (i64 j = 0; j < c; j++)
                pixel[j] = gray + part * (scale * ACC(pixel[j]) + shift - gray);
        }
    }
}

// Normal numbers (Box and Muller, 1958), four of each call of the generator.
extern "C" __global__ void augment_noise(REAL *x, const i64 *samples, i64 seed, i64 epoch, i64 n,
                                         i64 size, ACC std) {
    const i64 blocks = (size + 3) / 4;
    FOR_EACH(item, n * blocks) {
        const i64 k = item / blocks, block = item % blocks;
        unsigned words[4];
        draw(words, seed, epoch, samples[k], DRAW_NOISE | (unsigned)block);
        for (i64 j = 0; j < 4 && 4 * block + j < size; j++) {
            const unsigned first = words[j & 2], second = words[(j & 2) + 1];
            const ACC u = (ACC(first >> 8) + ACC(0.5)) / ACC(1 << 24),
                      angle = ACC(6.283185307179586) * (ACC((int)second) / ACC(4294967296.0)),
                      radius = sqrt(ACC(-2) * log(u));
            REAL *at = x + k * size + 4 * block + j;
            *at = ACC(*at) + std * radius * (j & 1 ? sin(angle) : cos(angle));
        }
    }
}
