/* All-reduce, reduce and broadcast among the ranks of a node, through a window of memory that all
   of them map.

   Each rank owns a line (its progress and what it is about to do) and two slots of memory. A
   message goes in chunks; a chunk is one turn, and turns alternate between the two slots. Small
   message: every rank copies it into its slot and, once all have arrived, reduces all slots by
   itself. Large: every rank reduces one part of the chunk and the others fetch it. The next chunk
   is copied in before the parts of this one are fetched. A slot is written again two turns later,
   when every rank has passed the turn between: nobody can still be reading it. Very large, and
   where the kernel lets processes read each other's memory (process_vm_readv): no slots, every rank
   reduces one part straight out of the others' buffers.

   Sums run along one binary tree over the ranks, ((r0 + r1) + (r2 + r3)), as in
   mpidl.collectives.algorithms.rabenseifner; 16-bit floats are added in float32 and rounded once, a
   mean of them after the division. Before any data is touched all ranks compare signatures: the
   length, type and operation, and a mark that stands for the call as the user wrote it (collective,
   operation, root, name). */
#define _GNU_SOURCE
#include "half.h"
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#else
#define PAUSE() ((void)0)
#endif

enum { MAX_RANKS = 1024 }; /* of a node; as in mpidl.collectives.engine.shared */
enum { MAX_LEVELS = 11 };  /* of the tree over so many ranks, and one more */
enum { BLOCK = 2048 };     /* elements that are reduced at a time */
enum { YIELDS = 1 << 14 }; /* how often a waiting rank gives its core away before it sleeps */
enum { ALL_REDUCE = 0, REDUCE = 1, BROADCAST = 2, COMPARE = 3 };
enum { OK = 0, MISMATCH = 1, UNREADABLE = 2 };
enum { PHASES = 4, SEGMENT = 128 << 10 };
enum { SUM = 0, PRODUCT = 1, MIN = 2, MAX = 3, MEAN = 4 }; /* MEAN: of floating-point types only */

typedef struct {
    uint64_t shape, mark;
} call_signature;

typedef struct {
    _Atomic uint64_t seen;       /* turn * PHASES + phase reached */
    call_signature signature[2]; /* of even and odd turns */
    uint64_t address;            /* of the buffer, while the others read it */
    int64_t pid;
    char pad[72];
} rank_line;

typedef struct {
    int64_t rank, size, slot_bytes, small_bytes, direct_bytes, spins;
    uint64_t turn;
    rank_line **lines;
    char **slots;
    char *scratch; /* SEGMENT bytes for each rank */
} node_state;

/* One collective of a rank: n elements of `width` bytes, and what all ranks must agree on. */
typedef struct {
    char *data;
    int64_t n, width;
    int type, op, what;
    int64_t root;
    call_signature signature;
} request;

typedef void tree_fn(char *out, char **source, int64_t count, int64_t n, int op);

#define OPERATE(T, NAN_A)                                                                \
    switch (op) {                                                                        \
    case SUM:                                                                            \
        for (int64_t i = 0; i < n; i++) out[i] = (T)(a[i] + b[i]);                       \
        break;                                                                           \
    case PRODUCT:                                                                        \
        for (int64_t i = 0; i < n; i++) out[i] = (T)(a[i] * b[i]);                       \
        break;                                                                           \
    case MIN:                                                                            \
        for (int64_t i = 0; i < n; i++) out[i] = (a[i] < b[i] || (NAN_A)) ? a[i] : b[i]; \
        break;                                                                           \
    default:                                                                             \
        for (int64_t i = 0; i < n; i++) out[i] = (a[i] > b[i] || (NAN_A)) ? a[i] : b[i]; \
    }

#define DIVIDE(T, out, n, count) \
    for (int64_t i = 0; i < (n); i++) (out)[i] = (T)((out)[i] / (T)(count))

/* The reduction of `count` sources along the binary tree, block by block, with partial sums on a
 * stack. */
#define TREE(NAME, T, NAN_A)                                                                \
    static void pair_##NAME(T *out, const T *a, const T *b, int64_t n, int op) {            \
        OPERATE(T, NAN_A)                                                                   \
    }                                                                                       \
    static void tree_##NAME(char *out, char **source, int64_t count, int64_t n, int op) {   \
        int step = op == MEAN ? SUM : op;                                                   \
        if (count == 2) {                                                                   \
            pair_##NAME((T *)out, (const T *)source[0], (const T *)source[1], n, step);     \
            if (op == MEAN) DIVIDE(T, (T *)out, n, count);                                  \
            return;                                                                         \
        }                                                                                   \
        static _Thread_local T stack[MAX_LEVELS][BLOCK];                                    \
        for (int64_t at = 0; at < n; at += BLOCK) {                                         \
            int64_t m = n - at < BLOCK ? n - at : BLOCK;                                    \
            int depth = 0;                                                                  \
            for (int64_t r = 0; r < count; r++) {                                           \
                memcpy(stack[depth], (const T *)source[r] + at, m * sizeof(T));             \
                for (int64_t bits = r; bits & 1; bits >>= 1, depth--)                       \
                    pair_##NAME(stack[depth - 1], stack[depth - 1], stack[depth], m, step); \
                depth++;                                                                    \
            }                                                                               \
            for (; depth > 1; depth--)                                                      \
                pair_##NAME(stack[depth - 2], stack[depth - 2], stack[depth - 1], m, step); \
            if (op == MEAN) DIVIDE(T, stack[0], m, count);                                  \
            memcpy((T *)out + at, stack[0], m * sizeof(T));                                 \
        }                                                                                   \
    }

TREE(f32, float, a[i] != a[i])
TREE(f64, double, a[i] != a[i])
TREE(i8, int8_t, 0)
TREE(u8, uint8_t, 0)
TREE(i16, int16_t, 0)
TREE(u16, uint16_t, 0)
TREE(i32, int32_t, 0)
TREE(u32, uint32_t, 0)
TREE(i64, int64_t, 0)
TREE(u64, uint64_t, 0)

/* 16-bit floats: the tree and the division of a mean run in float32, one rounding at their end. */
#define HALF(NAME)                                                                                 \
    static void tree_##NAME(char *out, char **source, int64_t count, int64_t n, int op) {          \
        static _Thread_local float stack[MAX_LEVELS][BLOCK];                                       \
        int step = op == MEAN ? SUM : op;                                                          \
        for (int64_t at = 0; at < n; at += BLOCK) {                                                \
            int64_t m = n - at < BLOCK ? n - at : BLOCK;                                           \
            int depth = 0;                                                                         \
            for (int64_t r = 0; r < count; r++) {                                                  \
                const uint16_t *x = (const uint16_t *)source[r] + at;                              \
                for (int64_t i = 0; i < m; i++) stack[depth][i] = NAME##_float(x[i]);              \
                for (int64_t bits = r; bits & 1; bits >>= 1, depth--)                              \
                    pair_f32(stack[depth - 1], stack[depth - 1], stack[depth], m, step);           \
                depth++;                                                                           \
            }                                                                                      \
            for (; depth > 1; depth--)                                                             \
                pair_f32(stack[depth - 2], stack[depth - 2], stack[depth - 1], m, step);           \
            if (op == MEAN) DIVIDE(float, stack[0], m, count);                                     \
            for (int64_t i = 0; i < m; i++) ((uint16_t *)out)[at + i] = float_##NAME(stack[0][i]); \
        }                                                                                          \
    }

HALF(f16)
HALF(bf16)

static tree_fn *const TREES[] = {tree_f32, tree_f64, tree_i8,  tree_u8,  tree_i16, tree_u16,
                                 tree_i32, tree_u32, tree_i64, tree_u64, tree_f16, tree_bf16};

static void publish(node_state *node, int phase) {
    atomic_store_explicit(&node->lines[node->rank]->seen, node->turn * PHASES + phase,
                          memory_order_release);
}

/* Spin, then give the core away, then sleep: a rank that waits long must not take the core from
 * those that compute. */
static void wait_for(node_state *node, int64_t rank, uint64_t wanted) {
    _Atomic uint64_t *seen = &node->lines[rank]->seen;
    struct timespec nap = {0, 50000};
    for (int64_t tries = 0; atomic_load_explicit(seen, memory_order_acquire) < wanted; tries++) {
        if (tries < node->spins)
            PAUSE();
        else if (tries < node->spins + YIELDS)
            sched_yield();
        else
            nanosleep(&nap, NULL);
    }
}

static void wait_all(node_state *node, int phase) {
    for (int64_t r = 0; r < node->size; r++)
        if (r != node->rank) wait_for(node, r, node->turn * PHASES + phase);
}

static int arrive(node_state *node, call_signature signature, int check) {
    int parity = node->turn & 1, same = 1;
    node->lines[node->rank]->signature[parity] = signature;
    publish(node, 1);
    wait_all(node, 1);
    if (!check) return same;
    for (int64_t r = 0; r < node->size; r++) {
        const call_signature *other = &node->lines[r]->signature[parity];
        same &= other->shape == signature.shape && other->mark == signature.mark;
    }
    return same;
}

static char *slot(node_state *node, int64_t rank, uint64_t turn) {
    return node->slots[rank] + (turn & 1) * node->slot_bytes;
}

static int small(node_state *node, const request *call) {
    const int64_t bytes = call->n * call->width;
    char *source[MAX_RANKS];
    node->turn++;
    memcpy(slot(node, node->rank, node->turn), call->data, bytes);
    if (!arrive(node, call->signature, 1)) return MISMATCH;
    for (int64_t r = 0; r < node->size; r++) source[r] = slot(node, r, node->turn);
    if (call->what == BROADCAST)
        memcpy(call->data, source[call->root], bytes);
    else if (call->what == ALL_REDUCE || node->rank == call->root)
        TREES[call->type](call->data, source, node->size, call->n, call->op);
    return OK;
}

/* Chunk [at, at + m) of the message: part r of it, cut on whole cache lines. */
static void part(const node_state *node, int64_t r, int64_t m, int64_t width, int64_t *low,
                 int64_t *high) {
    int64_t line = 64 / width, lines = (m + line - 1) / line;
    *low = r * lines / node->size * line;
    *high = (r + 1) * lines / node->size * line;
    if (*low > m) *low = m;
    if (*high > m) *high = m;
}

static void copy_in(node_state *node, uint64_t turn, const char *chunk, int64_t m, int64_t width) {
    int64_t low, high;
    char *mine = slot(node, node->rank, turn);
    part(node, node->rank, m, width, &low, &high);
    memcpy(mine, chunk, low * width);
    memcpy(mine + high * width, chunk + high * width, (m - high) * width);
}

static int large(node_state *node, const request *call) {
    const int64_t n = call->n, width = call->width;
    char *source[MAX_RANKS];
    int64_t step = node->slot_bytes / width, low, high;
    copy_in(node, node->turn + 1, call->data, n < step ? n : step, width);
    for (int64_t at = 0; at < n; at += step) {
        int64_t m = n - at < step ? n - at : step;
        char *chunk = call->data + at * width;
        node->turn++;
        if (!arrive(node, call->signature, at == 0)) return MISMATCH;
        part(node, node->rank, m, width, &low, &high);
        char *result = slot(node, node->rank, node->turn) + low * width;
        for (int64_t r = 0; r < node->size; r++)
            source[r] = slot(node, r, node->turn) + low * width;
        source[node->rank] = chunk + low * width;
        if (high > low) TREES[call->type](result, source, node->size, high - low, call->op);
        publish(node, 2);
        if (call->what == ALL_REDUCE || node->rank == call->root)
            memcpy(chunk + low * width, result, (high - low) * width);
        int64_t next = n - at - m < step ? n - at - m : step;
        if (next > 0) copy_in(node, node->turn + 1, chunk + m * width, next, width);
        for (int64_t r = 0; r < node->size; r++) {
            if (r == node->rank || (call->what == REDUCE && node->rank != call->root)) continue;
            wait_for(node, r, node->turn * PHASES + 2);
            part(node, r, m, width, &low, &high);
            memcpy(chunk + low * width, slot(node, r, node->turn) + low * width,
                   (high - low) * width);
        }
    }
    return OK;
}

static int broadcast(node_state *node, const request *call) {
    const int64_t bytes = call->n * call->width, root = call->root;
    for (int64_t at = 0; at < bytes; at += node->slot_bytes) {
        int64_t m = bytes - at < node->slot_bytes ? bytes - at : node->slot_bytes;
        node->turn++;
        if (node->rank == root) memcpy(slot(node, root, node->turn), call->data + at, m);
        if (!arrive(node, call->signature, at == 0)) return MISMATCH;
        if (node->rank != root) memcpy(call->data + at, slot(node, root, node->turn), m);
    }
    return OK;
}

static int fetch(node_state *node, int64_t rank, char *to, uint64_t from, int64_t bytes) {
    while (bytes > 0) {
        struct iovec local = {to, (size_t)bytes}, remote = {(void *)from, (size_t)bytes};
        ssize_t got = process_vm_readv((pid_t)node->lines[rank]->pid, &local, 1, &remote, 1, 0);
        if (got <= 0) return UNREADABLE;
        to += got;
        from += (uint64_t)got;
        bytes -= got;
    }
    return OK;
}

/* Reduce this rank's part out of everybody's buffers into its own buffer. */
static int gather_part(node_state *node, const request *call, int64_t low, int64_t high) {
    const int64_t width = call->width;
    char *source[MAX_RANKS];
    int64_t step = SEGMENT / width;
    for (int64_t at = low; at < high; at += step) {
        int64_t m = high - at < step ? high - at : step;
        for (int64_t r = 0; r < node->size; r++) {
            source[r] = r == node->rank ? call->data + at * width : node->scratch + r * SEGMENT;
            if (r != node->rank &&
                fetch(node, r, source[r], node->lines[r]->address + at * width, m * width))
                return UNREADABLE;
        }
        TREES[call->type](call->data + at * width, source, node->size, m, call->op);
    }
    return OK;
}

/* A root of reduce reads the others' parts, which they reduced in place: what the others hold
 * afterwards is undefined. */
static int direct(node_state *node, const request *call) {
    const int64_t n = call->n, width = call->width, root = call->root;
    char *data = call->data;
    const int64_t last = call->what == ALL_REDUCE || node->rank == root ? node->size : 1;
    int64_t low, high;
    int status = OK;
    node->turn++;
    node->lines[node->rank]->address = (uint64_t)data;
    if (!arrive(node, call->signature, 1)) return MISMATCH;
    if (call->what == BROADCAST) {
        if (node->rank != root)
            status = fetch(node, root, data, node->lines[root]->address, n * width);
    } else {
        part(node, node->rank, n, width, &low, &high);
        status = gather_part(node, call, low, high);
        publish(node, 2);
        for (int64_t i = 1; i < last; i++) {
            int64_t r = (node->rank + i) % node->size;
            wait_for(node, r, node->turn * PHASES + 2);
            part(node, r, n, width, &low, &high);
            status |= fetch(node, r, data + low * width, node->lines[r]->address + low * width,
                            (high - low) * width);
        }
    }
    publish(node, 3); /* nobody changes a buffer that another rank still reads */
    wait_all(node, 3);
    return status;
}

/* Whether this rank can read the memory of every other one. Call on all ranks; lines must be zero
 * before the first call. */
int mpidl_shared_probe(node_state *node) {
    uint64_t word = 0x6d7069646cu, copy = 0;
    int status = OK;
    node->lines[node->rank]->pid = getpid();
    node->lines[node->rank]->address = (uint64_t)&word;
    node->turn++;
    arrive(node, (call_signature){0, 0}, 0);
    for (int64_t r = 0; r < node->size && !status; r++) {
        status =
            fetch(node, r, (char *)&copy, node->lines[r]->address, sizeof copy) || copy != word;
    }
    publish(node, 3);
    wait_all(node, 3);
    return status == OK;
}

/* what: 0 all-reduce, 1 reduce to root (what the others hold afterwards is undefined), 2 broadcast
   from root, 3 only compare. n: below 2^48. mark: any number that must be equal on all ranks.
   Returns 1 on a mismatch of what the ranks want to do, 2 where another rank's memory could not be
   read. */
int mpidl_shared(node_state *node, void *data, int64_t n, int width, int type, int op, int what,
                 int root, uint64_t mark) {
    const call_signature signature = {(((uint64_t)n * 16 + type) * 16 + op) * 4 + what, mark};
    const request call = {data, n, width, type, op, what, root, signature};
    if (what == COMPARE) {
        node->turn++;
        return arrive(node, signature, 1) ? OK : MISMATCH;
    }
    if (n * width <= node->small_bytes) return small(node, &call);
    if (n * width >= node->direct_bytes) return direct(node, &call);
    if (what == BROADCAST) return broadcast(node, &call);
    return large(node, &call);
}
