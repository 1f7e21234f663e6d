/* What the data loader does for each window, each in one call without Python's lock: permutations
   of many short rows, and many reads of files. Called through mpidl.data.native. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <sys/types.h>
#include <unistd.h>

/* SplitMix64 (Steele, Lea and Flood, 2014): the finalizer of a counter */
static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Shuffle every row x[starts[r], starts[r + 1]) by the numbers of the key of its own (Fisher and
   Yates). Rows have fewer than 2^32 elements. */
void mpidl_shuffle_rows(int64_t *x, const int64_t *starts, const uint64_t *keys, int64_t rows) {
    for (int64_t r = 0; r < rows; r++) {
        int64_t *row = x + starts[r];
        for (uint64_t i = (uint64_t)(starts[r + 1] - starts[r]); i > 1; i--) {
            uint64_t drawn = mix(keys[r] + i * 0x9e3779b97f4a7c15u) >> 32;
            uint64_t j = (drawn * i) >> 32;
            int64_t held = row[i - 1];
            row[i - 1] = row[j];
            row[j] = held;
        }
    }
}

/* Read all of [offset, offset + bytes) of a file: 0, or minus the error number, or 1 + the offset
   where the file ends too early. */
static int64_t read_all(int file, uint8_t *out, int64_t bytes, int64_t offset) {
    while (bytes > 0) {
        ssize_t got = pread(file, out, (size_t)bytes, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -(int64_t)errno;
        if (got == 0) return 1 + offset;
        offset += got, out += got, bytes -= got;
    }
    return 0;
}

/* Read ranges of rows of a chunked dataset into out, one after another. Range i is the rows
   ranges[2 i] .. ranges[2 i + 1] - 1; chunk c has chunk_rows rows, at offsets[c] of the file, and a
   negative offset is not known. Chunks that are neighbors in the file are read together. Returns
   what read_all returns; done: the rows that were read. The caller has checked that all fits. */
int64_t mpidl_read_rows(int64_t file, const int64_t *ranges, const int64_t *offsets, uint8_t *out,
                        int64_t count, int64_t chunks, int64_t chunk_rows, int64_t row_bytes) {
    int64_t from = 0, bytes = 0; /* what is to be read together */
    for (int64_t i = 0; i < count; i++) {
        for (int64_t row = ranges[2 * i]; row < ranges[2 * i + 1];) {
            int64_t chunk = row / chunk_rows, stop = (chunk + 1) * chunk_rows;
            if (chunk >= chunks || offsets[chunk] < 0) return -(int64_t)EINVAL;
            if (stop > ranges[2 * i + 1]) stop = ranges[2 * i + 1];
            int64_t at = offsets[chunk] + (row - chunk * chunk_rows) * row_bytes;
            if (at != from + bytes) {
                int64_t failed = read_all((int)file, out, bytes, from);
                if (failed) return failed;
                out += bytes, from = at, bytes = 0;
            }
            bytes += (stop - row) * row_bytes;
            row = stop;
        }
    }
    return read_all((int)file, out, bytes, from);
}
