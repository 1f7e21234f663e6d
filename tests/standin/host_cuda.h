// Runs CUDA C++ on the CPU, one block at a time, so that kernels are executed where there is no
// GPU.
//
// The threads of a block are fibers. __syncthreads and warp shuffles suspend a fiber until its
// block or warp has arrived; anything that a GPU would leave undefined (a thread that returned
// while others wait, a warp of which only a part shuffles) ends with a message. The order in which
// fibers run is forward, reversed or random: a missing __syncthreads shows in one.
#pragma once
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <cmath>

using std::erf;
using std::exp;
using std::fabs;
using std::log;
using std::log1p;
using std::sqrt;
using std::tanh;

// What the GPU does in one instruction: 16-bit floating numbers from and to float, rounded to
// nearest even.
inline float f16_value(unsigned short bits) {
    const unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31,
                   fraction = bits & 1023;
    if (exponent == 0) {
        const float small = std::ldexp((float)fraction, -24);
        return sign ? -small : small;
    }
    const unsigned wide =
        sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}
inline unsigned short f16_bits(float value) {
    unsigned wide;
    memcpy(&wide, &value, 4);
    const unsigned sign = wide >> 16 & 0x8000u, size = wide & 0x7fffffffu;
    if (size > 0x7f800000u) return sign | 0x7e00u;
    if (size >= 0x477ff000u) return sign | 0x7c00u; // at least 65520
    if (size < 0x38800000u)
        return sign | (unsigned)std::nearbyint(std::ldexp(std::fabs(value), 24));
    return sign | ((size + 0xfffu + (size >> 13 & 1)) >> 13) - (112 << 10);
}
inline float bf16_value(unsigned short bits) {
    const unsigned wide = (unsigned)bits << 16;
    float v;
    memcpy(&v, &wide, 4);
    return v;
}
inline unsigned short bf16_bits(float value) {
    unsigned wide;
    memcpy(&wide, &value, 4);
    if ((wide & 0x7fffffffu) > 0x7f800000u) return wide >> 16 | 64;
    return (wide + 0x7fffu + (wide >> 16 & 1)) >> 16;
}

struct dim3 {
    unsigned x, y, z;
};
static dim3 gridDim, blockDim, blockIdx, threadIdx;
#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static

namespace host {
enum State { READY, AT_BLOCK, AT_WARP, DONE };
struct Fiber {
    State state;
    dim3 index;
    bool begun;
    char *stack;
    ucontext_t start;
    jmp_buf here;
};
static const int MOST = 1024;
static const size_t STACK = 64 << 10;
static Fiber fibers[MOST];
static jmp_buf scheduler;
static int count, current, order_seed;
static void (*body)(void **);
static void **arguments;
static char slots[MOST][16];
static char problem[160];

// A fiber begins with setcontext and then only jumps: swapcontext would ask the kernel for the
// signal mask at each turn.
static void suspend(State state) {
    Fiber &self = fibers[current];
    self.state = state;
    if (!_setjmp(self.here)) _longjmp(scheduler, 1);
}
static void entry() {
    for (;;) {
        body(arguments);
        suspend(DONE);
    } // the same fibers serve all blocks
}
__attribute__((noinline)) static void resume(Fiber &f) {
    if (_setjmp(scheduler)) return;
    if (f.begun) _longjmp(f.here, 1);
    f.begun = true;
    if (!f.stack) f.stack = (char *)malloc(STACK);
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack;
    f.start.uc_stack.ss_size = STACK;
    f.start.uc_link = nullptr;
    makecontext(&f.start, entry, 0);
    setcontext(&f.start);
}

static bool release(State state, int first,
                    int last) { // lets [first, last) go on if all of them have arrived
    int waiting = 0, done = 0;
    for (int i = first; i < last; i++)
        waiting += fibers[i].state == state, done += fibers[i].state == DONE;
    if (!waiting || waiting + done < last - first) return false;
    if (done) {
        snprintf(problem, sizeof problem, "%d thread(s) returned while %d wait in %s", done,
                 waiting, state == AT_BLOCK ? "__syncthreads" : "a shuffle");
        return false;
    }
    for (int i = first; i < last; i++) fibers[i].state = READY;
    return true;
}

static void set_order(int *order) {
    for (int i = 0; i < count; i++) order[i] = order_seed == 1 ? count - 1 - i : i;
    if (order_seed < 2) return;
    uint32_t drawn = (uint32_t)order_seed * 2654435761u;
    for (int i = count - 1; i > 0; i--) {
        drawn ^= drawn << 13, drawn ^= drawn >> 17,
            drawn ^= drawn << 5; // xorshift (Marsaglia, 2003)
        const int j = drawn % (i + 1), held = order[i];
        order[i] = order[j], order[j] = held;
    }
}

static void run_block() {
    int order[MOST];
    count = int(blockDim.x * blockDim.y * blockDim.z);
    set_order(order);
    for (int i = 0; i < count; i++) {
        fibers[i].state = READY;
        fibers[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y,
                           i / (blockDim.x * blockDim.y)};
    }
    for (int done = 0; done < count && !problem[0];) {
        bool moved = false;
        done = 0;
        for (int k = 0; k < count; k++) {
            Fiber &f = fibers[order[k]];
            if (f.state == READY) {
                current = order[k];
                threadIdx = f.index;
                resume(f);
                moved = true;
            }
            done += f.state == DONE;
        }
        if (moved || done == count) continue;
        for (int w = 0; w < count; w += 32)
            moved |= release(AT_WARP, w, w + 32 < count ? w + 32 : count);
        moved |= release(AT_BLOCK, 0, count);
        if (!moved && !problem[0])
            snprintf(problem, sizeof problem, "threads wait for each other at different places");
    }
    if (problem[0])
        for (int i = 0; i < count; i++) fibers[i].begun = false; // left where they are
}

template <class T>
static T exchange(T value, int from_lane, bool valid) {
    const int self = current, warp = self / 32 * 32;
    memcpy(slots[self], &value, sizeof value);
    suspend(AT_WARP);
    T result = value;
    if (valid && from_lane < 32 && warp + from_lane < count)
        memcpy(&result, slots[warp + from_lane], sizeof result);
    suspend(AT_WARP);
    return result;
}
} // namespace host

inline void __syncthreads() {
    host::suspend(host::AT_BLOCK);
}
inline void __syncwarp(unsigned = 0xffffffffu) {
    host::suspend(host::AT_WARP);
}
template <class T>
T __shfl_down_sync(unsigned, T v, int by) {
    int lane = host::current % 32;
    return host::exchange(v, lane + by, lane + by < 32);
}
template <class T>
T __shfl_xor_sync(unsigned, T v, int mask) {
    int lane = host::current % 32;
    return host::exchange(v, lane ^ mask, true);
}
template <class T>
T __shfl_sync(unsigned, T v, int from) {
    return host::exchange(v, from, true);
}
template <class T>
T atomicAdd(T *p, T v) {
    T old = *p;
    *p += v;
    return old;
}
template <class T>
T atomicMax(T *p, T v) {
    T old = *p;
    if (v > old) *p = v;
    return old;
}

// Runs a whole grid. cooperative: threads synchronize, so they must be fibers; otherwise they
// simply run one after another.
static const char *launch(void (*kernel)(void **), const unsigned *grid, const unsigned *block,
                          void **args, int cooperative, int seed) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    host::body = kernel;
    host::arguments = args;
    host::order_seed = seed;
    host::problem[0] = 0;
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) {
                if (cooperative) {
                    host::run_block();
                    if (host::problem[0]) return host::problem;
                    continue;
                }
                for (threadIdx.z = 0; threadIdx.z < blockDim.z; threadIdx.z++)
                    for (threadIdx.y = 0; threadIdx.y < blockDim.y; threadIdx.y++)
                        for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++) kernel(args);
            }
    return nullptr;
}
