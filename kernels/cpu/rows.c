/* Reads rows of a file straight to where each is wanted, in one pass over the file.

   Rows that follow one another in the file go to scattered places in memory by one preadv. Small
   rows, for which a system call would spend more on its list than on the data, come through a
   buffer that stays in the cache. */
#define _GNU_SOURCE
#include "mpidl.h"
#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LIST = 1024 };       /* rows of one preadv: IOV_MAX of Linux */
enum { SMALL_ROW = 256 };   /* bytes */
enum { BUFFER = 64 * 1024 }; /* bytes, stays in the cache */
#define FILE_ENDS (-1)

/* Exactly n bytes from `offset` on: 0, an error number, or FILE_ENDS. */
static int read_all(int file, char *out, int64_t n, int64_t offset) {
    while (n > 0) {
        ssize_t got = pread(file, out, n, offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got ? errno : FILE_ENDS;
        out += got, n -= got, offset += got;
    }
    return 0;
}

/* A short preadv is completed row by row. */
static int read_scattered(int file, int64_t offset, int64_t rows, int64_t width,
                          const int64_t *place, char *out) {
    struct iovec list[LIST];
    for (int64_t i = 0; i < rows; i += LIST) {
        int n = rows - i < LIST ? (int)(rows - i) : LIST;
        for (int j = 0; j < n; j++)
            list[j] = (struct iovec){out + place[i + j] * width, width};
        ssize_t got = preadv(file, list, n, offset + i * width);
        for (int64_t j = got > 0 ? got / width : 0; j < n; j++) {
            int error = read_all(file, list[j].iov_base, width, offset + (i + j) * width);
            if (error)
                return error;
        }
    }
    return 0;
}

static int read_small(int file, int64_t offset, int64_t rows, int64_t width, const int64_t *place,
                      char *out) {
    char buffer[BUFFER];
    int64_t each = BUFFER / width;
    for (int64_t i = 0; i < rows; i += each) {
        int64_t n = rows - i < each ? rows - i : each;
        int error = read_all(file, buffer, n * width, offset + i * width);
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
static int read_part(int file, const int64_t *ranges, int64_t count, const int64_t *chunks,
                     int64_t chunk_rows, int64_t width, const int64_t *place, char *out,
                     int64_t low, int64_t high) {
    for (int64_t r = 0, first = 0; r < count && first < high; r++) {
        int64_t start = ranges[2 * r], n = ranges[2 * r + 1] - start;
        int64_t at = low > first ? low : first, end = high < first + n ? high : first + n;
        while (at < end) {
            int64_t row = start + at - first, within = row % chunk_rows;
            int64_t rows = end - at < chunk_rows - within ? end - at : chunk_rows - within;
            int64_t offset = chunks[row / chunk_rows] + within * width;
            int error;
            if (!place)
                error = read_all(file, out + at * width, rows * width, offset);
            else if (width < SMALL_ROW)
                error = read_small(file, offset, rows, width, place + at, out);
            else
                error = read_scattered(file, offset, rows, width, place + at, out);
            if (error)
                return error;
            at += rows;
        }
        first += n > 0 ? n : 0;
    }
    return 0;
}

/* ranges: (start, stop) of rows each, which together have `total` rows; chunks: the offset in the
   file of each `chunk_rows` rows. Row r of the concatenated ranges goes to out + place[r] * width,
   or to out + r * width without `place`. Threads divide the rows. Returns 0, the number of an
   error, or FILE_ENDS. */
int mpidl_read_rows(int file, const int64_t *ranges, int64_t count, int64_t total,
                    const int64_t *chunks, int64_t chunk_rows, int64_t width, const int64_t *place,
                    char *out, int threads) {
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int t = 0; t < threads; t++) {
        int error = read_part(file, ranges, count, chunks, chunk_rows, width, place, out,
                              t * total / threads, (t + 1) * total / threads);
        if (error) {
#pragma omp atomic write
            failed = error;
        }
    }
    return failed;
}
