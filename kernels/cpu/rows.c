/* Reads rows of a file straight to where each is wanted, in one pass over the file.

   Rows that follow one another in the file go to scattered places in memory by one preadv. Small
   rows, for which a system call would spend more on its list than on the data, come through a buffer
   that stays in the cache. */
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

/* segments: (offset in the file, rows, number of the first of them in `place`) each, none of them
   empty. Row r of those in `place` goes to out + place[r] * width, or to out + r * width without
   `place`. Threads divide the segments. Returns 0, the number of an error, or FILE_ENDS. */
int mpidl_read_rows(int file, const int64_t *segments, int64_t count, int64_t width,
                    const int64_t *place, char *out, int threads) {
    int failed = 0;
    (void)threads;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1 && count > 1)
    for (int64_t s = 0; s < count; s++) {
        const int64_t *segment = segments + 3 * s;
        int64_t offset = segment[0], rows = segment[1], first = segment[2];
        int error, known;
#pragma omp atomic read
        known = failed;
        if (known)
            continue;
        if (!place)
            error = read_all(file, out + first * width, rows * width, offset);
        else if (width < SMALL_ROW)
            error = read_small(file, offset, rows, width, place + first, out);
        else
            error = read_scattered(file, offset, rows, width, place + first, out);
        if (error) {
#pragma omp atomic write
            failed = error;
        }
    }
    return failed;
}
