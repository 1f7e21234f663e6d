/* Reads rows of a file straight to where each is wanted, in one pass over the file.

   Rows that follow one another in the file go to scattered places in memory by one preadv. Small
   rows, for which a system call would spend more on its list than on the data, come through a
   buffer that stays in the cache. Called through mpidl.data.native. */
#define _GNU_SOURCE
#include "mpidl.h"
#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LIST = 1024 };       /* rows of one preadv: IOV_MAX of Linux */
enum { SMALL_ROW = 256 };   /* bytes */
enum { BUFFER = 64 * 1024 }; /* bytes, stays in the cache */

/* Exactly n bytes from `offset` on: 0, minus the error number, or 1 + the offset where the file
   ends too early. */
static int64_t read_all(int file, char *out, int64_t n, int64_t offset) {
    while (n > 0) {
        ssize_t got = pread(file, out, n, offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got ? -(int64_t)errno : 1 + offset;
        out += got, n -= got, offset += got;
    }
    return 0;
}

/* A short preadv is completed row by row. */
static int64_t read_scattered(int file, int64_t offset, int64_t rows, int64_t width,
                          const int64_t *place, char *out) {
    struct iovec list[LIST];
    for (int64_t i = 0; i < rows; i += LIST) {
        int n = rows - i < LIST ? (int)(rows - i) : LIST;
        for (int j = 0; j < n; j++)
            list[j] = (struct iovec){out + place[i + j] * width, width};
        ssize_t got = preadv(file, list, n, offset + i * width);
        for (int64_t j = got > 0 ? got / width : 0; j < n; j++) {
            int64_t error = read_all(file, list[j].iov_base, width, offset + (i + j) * width);
            if (error)
                return error;
        }
    }
    return 0;
}

static int64_t read_small(int file, int64_t offset, int64_t rows, int64_t width,
                          const int64_t *place, char *out) {
    char buffer[BUFFER];
    int64_t each = BUFFER / width;
    for (int64_t i = 0; i < rows; i += each) {
        int64_t n = rows - i < each ? rows - i : each;
        int64_t error = read_all(file, buffer, n * width, offset + i * width);
        if (error)
            return error;
        if (width == 8)
            for (int64_t j = 0; j < n; j++)
                memcpy(out + place[i + j] * 8, buffer + j * 8, 8);
        else
            for (int64_t j = 0; j < n; j++)
                memcpy(out + place[i + j] * width, buffer + j * width, width);
    }
    return 0;
}

/* The rows [low, high) of the concatenated ranges. */
static int64_t read_part(int file, const int64_t *ranges, const int64_t *offsets,
                         const int64_t *place, char *out, int64_t count, int64_t chunks,
                         int64_t chunk_rows, int64_t width, int64_t low, int64_t high) {
    for (int64_t r = 0, first = 0; r < count && first < high; r++) {
        int64_t start = ranges[2 * r], n = ranges[2 * r + 1] - start;
        int64_t at = low > first ? low : first, end = high < first + n ? high : first + n;
        while (at < end) {
            int64_t row = start + at - first, chunk = row / chunk_rows;
            int64_t within = row - chunk * chunk_rows, rows = chunk_rows - within;
            if (chunk >= chunks || offsets[chunk] < 0)
                return -(int64_t)EINVAL;
            if (rows > end - at)
                rows = end - at;
            int64_t (*read)(int, int64_t, int64_t, int64_t, const int64_t *, char *) =
                width < SMALL_ROW ? read_small : read_scattered;
            int64_t failed =
                read(file, offsets[chunk] + within * width, rows, width, place + at, out);
            if (failed)
                return failed;
            at += rows;
        }
        first += n;
    }
    return 0;
}

/* Read ranges of rows of a chunked dataset as mpidl_read_rows does, row r of all to
   out + place[r] * row_bytes. Threads divide the rows. The caller has checked that all fits. */
int64_t mpidl_place_rows(int64_t file, const int64_t *ranges, const int64_t *offsets,
                         const int64_t *place, uint8_t *out, int64_t count, int64_t chunks,
                         int64_t chunk_rows, int64_t row_bytes, int64_t rows, int64_t threads) {
    int64_t failed = 0;
#pragma omp parallel for schedule(static) num_threads((int)threads) if (threads > 1)
    for (int64_t t = 0; t < threads; t++) {
        int64_t error = read_part((int)file, ranges, offsets, place, (char *)out, count, chunks,
                                  chunk_rows, row_bytes, t * rows / threads,
                                  (t + 1) * rows / threads);
        if (error) {
#pragma omp atomic write
            failed = error;
        }
    }
    return failed;
}
