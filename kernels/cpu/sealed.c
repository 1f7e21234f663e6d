/* Reads rows of a sealed file straight to where each is wanted: mpidl.security.sealed_format says
   what lies there. Segments are decrypted by OpenSSL's EVP, whose functions the caller finds in the
   library that Python itself uses: nothing is linked, and no header of OpenSSL is needed. Called
   through mpidl.data.sealed_rows. */
#define _GNU_SOURCE
#include "mpidl.h"
#include <errno.h>
#include <unistd.h>

enum { SEGMENT = 16 * 1024, TAG = 16, TOGETHER = 8, PREFIX = 7, NONCE = 12, KEY = 32 };
enum { SET_TAG = 0x11 }; /* EVP_CTRL_AEAD_SET_TAG */
#define NOT_AUTHENTIC (1ll << 32)

struct evp { /* in the order of mpidl.data.sealed_rows */
    void *(*new)(void);
    void (*free)(void *);
    const void *(*aes_256_gcm)(void);
    int (*init)(void *, const void *, void *, const uint8_t *, const uint8_t *);
    int (*update)(void *, uint8_t *, int *, const uint8_t *, int);
    int (*control)(void *, int, int, void *);
    int (*final)(void *, uint8_t *, int *);
};

struct sealed {
    const struct evp *evp;
    const uint8_t *keys;     /* key, identity and prefix of the file */
    const uint8_t *prefixes; /* of rewritten segments */
    const int64_t *numbers;  /* of rewritten segments, ascending */
    int64_t rewritten, size, room;  /* size: of the plaintext */
    int file;
};

struct reader {
    const struct sealed *sealed;
    void *cipher;
    const int64_t *place; /* row r goes to place[r], or stays at r */
    uint8_t *out;
    int64_t width;
    uint8_t *stored, *plain;
};

/* Of each thread, so that no page of it is fresh in every call */
static _Thread_local uint8_t stored_room[TOGETHER * (SEGMENT + TAG)], plain_room[SEGMENT];

/* The prefix of the file, or the segment's own; its number; whether it is the last one. */
static void make_nonce(const struct sealed *s, int64_t number, uint8_t nonce[NONCE]) {
    const uint8_t *prefix = s->keys + 2 * KEY;
    for (int64_t low = 0, high = s->rewritten; low < high;) {
        int64_t middle = (low + high) / 2;
        if (s->numbers[middle] == number) {
            prefix = s->prefixes + middle * PREFIX;
            break;
        }
        if (s->numbers[middle] < number)
            low = middle + 1;
        else
            high = middle;
    }
    memcpy(nonce, prefix, PREFIX);
    for (int i = 0; i < 4; i++)
        nonce[PREFIX + i] = (uint8_t)(number >> (24 - 8 * i));
    nonce[PREFIX + 4] = number == (s->size - 1) / SEGMENT;
}

/* 1 where the segment is what was sealed; else `out` holds nothing of it. */
static int decrypt(struct reader *r, int64_t number, uint8_t *stored, int bytes, uint8_t *out) {
    const struct evp *evp = r->sealed->evp;
    uint8_t nonce[NONCE], none[TAG];
    int n;
    make_nonce(r->sealed, number, nonce);
    if (evp->init(r->cipher, NULL, NULL, NULL, nonce) == 1 &&
        evp->update(r->cipher, NULL, &n, r->sealed->keys + KEY, KEY) == 1 &&
        evp->update(r->cipher, out, &n, stored, bytes) == 1 && n == bytes &&
        evp->control(r->cipher, SET_TAG, TAG, stored + bytes) == 1 &&
        evp->final(r->cipher, none, &n) == 1)
        return 1;
    memset(out, 0, bytes);
    return 0;
}

/* Plaintext from byte `at` of the rows on, to the places of these rows. */
static void scatter(struct reader *r, int64_t at, const uint8_t *plain, int64_t bytes) {
    while (bytes > 0) {
        int64_t row = at / r->width, within = at % r->width, n = r->width - within;
        if (n > bytes)
            n = bytes;
        memcpy(r->out + (r->place ? r->place[row] : row) * r->width + within, plain, n);
        at += n, plain += n, bytes -= n;
    }
}

/* A segment goes straight to its place where it lies in one row, or all rows stay in order. */
static uint8_t *straight(struct reader *r, int64_t at, int64_t bytes) {
    if (!r->place)
        return r->out + at;
    int64_t row = at / r->width, within = at % r->width;
    return within + bytes <= r->width ? r->out + r->place[row] * r->width + within : NULL;
}

/* `bytes` at `offset` of the plaintext, which are the rows from their byte `at` on. */
static int64_t read_run(struct reader *r, int64_t offset, int64_t bytes, int64_t at) {
    const struct sealed *s = r->sealed;
    if (offset < 0 || offset + bytes > s->size)
        return 1 + s->size;
    while (bytes > 0) {
        int64_t first = offset / SEGMENT, end = (offset + bytes - 1) / SEGMENT + 1;
        int64_t count = end - first < TOGETHER ? end - first : TOGETHER;
        int64_t stored = count * (SEGMENT + TAG), start = s->room + first * (SEGMENT + TAG);
        int64_t past = (first + count) * SEGMENT - s->size; /* the last segment is shorter */
        stored -= past > 0 ? past : 0;
        for (int64_t done = 0; done < stored;) {
            ssize_t got = pread(s->file, r->stored + done, stored - done, start + done);
            if (got < 0 && errno == EINTR)
                continue;
            if (got <= 0)
                return got ? -(int64_t)errno : 1 + offset;
            done += got;
        }
        for (int64_t i = 0; i < count; i++) {
            int64_t number = first + i, base = number * SEGMENT, within = offset - base;
            int64_t whole = s->size - base < SEGMENT ? s->size - base : SEGMENT;
            int64_t n = whole - within < bytes ? whole - within : bytes;
            uint8_t *target = n == whole ? straight(r, at, n) : NULL;
            uint8_t *plain = target ? target : r->plain;
            if (!decrypt(r, number, r->stored + i * (SEGMENT + TAG), (int)whole, plain))
                return -NOT_AUTHENTIC - number;
            if (!target)
                scatter(r, at, plain + within, n);
            offset += n, bytes -= n, at += n;
        }
    }
    return 0;
}

/* The rows [low, high) of the concatenated ranges; chunks that are neighbors are read together. */
static int64_t read_part(struct reader *r, const int64_t *ranges, const int64_t *offsets,
                         int64_t count, int64_t chunks, int64_t chunk_rows, int64_t low,
                         int64_t high) {
    int64_t from = 0, bytes = 0, begin = low * r->width, width = r->width;
    for (int64_t i = 0, first = 0; i < count && first < high; i++) {
        int64_t start = ranges[2 * i], n = ranges[2 * i + 1] - start;
        int64_t at = low > first ? low : first, end = high < first + n ? high : first + n;
        while (at < end) {
            int64_t row = start + at - first, chunk = row / chunk_rows;
            int64_t within = row - chunk * chunk_rows, rows = chunk_rows - within;
            if (chunk >= chunks || offsets[chunk] < 0)
                return -(int64_t)EINVAL;
            if (rows > end - at)
                rows = end - at;
            int64_t here = offsets[chunk] + within * width;
            if (here != from + bytes) {
                int64_t failed = read_run(r, from, bytes, begin);
                if (failed)
                    return failed;
                from = here, bytes = 0, begin = at * width;
            }
            bytes += rows * width, at += rows;
        }
        first += n;
    }
    return read_run(r, from, bytes, begin);
}

static int64_t read_alone(const struct sealed *s, const int64_t *ranges, const int64_t *offsets,
                          const int64_t *place, uint8_t *out, int64_t count, int64_t chunks,
                          int64_t chunk_rows, int64_t width, int64_t low, int64_t high) {
    int64_t failed = -(int64_t)ENOMEM;
    void *cipher = s->evp->new();
    struct reader r = {s, cipher, place, out, width, stored_room, plain_room};
    if (cipher && s->evp->init(cipher, s->evp->aes_256_gcm(), NULL, s->keys, NULL) == 1)
        failed = read_part(&r, ranges, offsets, count, chunks, chunk_rows, low, high);
    s->evp->free(cipher);
    return failed;
}

/* Read ranges of rows as mpidl_place_rows does; without places one after another. Returns what that
   does; -NOT_AUTHENTIC - n where segment n is not what was sealed. */
int64_t mpidl_unseal_rows(int64_t file, const void *evp, const uint8_t *keys,
                          const int64_t *numbers, const uint8_t *prefixes, const int64_t *ranges,
                          const int64_t *offsets, const int64_t *place, uint8_t *out,
                          int64_t rewritten, int64_t size, int64_t room, int64_t count,
                          int64_t chunks, int64_t chunk_rows, int64_t row_bytes, int64_t rows,
                          int64_t threads) {
    struct sealed sealed = {evp, keys, prefixes, numbers, rewritten, size, room, (int)file};
    int64_t failed = 0;
#pragma omp parallel for schedule(static) num_threads((int)threads) if (threads > 1)
    for (int64_t t = 0; t < threads; t++) {
        int64_t error =
            read_alone(&sealed, ranges, offsets, place, out, count, chunks, chunk_rows, row_bytes,
                       t * rows / threads, (t + 1) * rows / threads);
        if (error) {
#pragma omp atomic write
            failed = error;
        }
    }
    return failed;
}
