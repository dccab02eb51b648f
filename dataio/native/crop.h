/* A crop: the box it is cut by, and its chunks' bytes, found in their shard and read. */

#pragma once
#include <errno.h>
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>
#include "cast.h"
#include "codes.h"

enum { GAP = 4096 }; /* bytes between two chunks that are read over */

/* The chunks that a box meets along one axis, and the part of the box that lies in the volume. */
typedef struct {
    int chunk, start, low, high, first, count;
} Axis;

typedef struct {
    Cast cast;
    Axis axes[3];
    uint8_t empty[4]; /* a stored 0, as it is written: the voxels of absent chunks */
    int fd;           /* -1: chunks are in memory */
    int asked;        /* whether the kernel was told what will be read */
    const uint64_t *offsets;
    const int64_t *sizes; /* stored bytes of each chunk, 0 where absent */
    const uint8_t **stored;
    Run *runs;
    uint8_t *scratch, *buffer; /* to decode into, and behind it to read into */
    size_t capacity;           /* of both, in bytes */
    ptrdiff_t failed;          /* the chunk that an error is about */
    long long detail;          /* errno, or where the file ends, or the scratch wanted */
    long long read_ns, read_bytes;
} Crop;

static Axis axis_of(int extent, int chunk, int start, int size) {
    Axis a = {.chunk = chunk, .start = start, .low = start > 0 ? start : 0};
    a.high = start < extent - size ? start + size : extent;
    if (a.high <= a.low) return a;
    a.first = a.low / chunk;
    a.count = (a.high - 1) / chunk + 1 - a.first;
    return a;
}

/* Chunk k of an axis: its first voxel within the box, how many, and where they go. */
static void span(const Axis *a, int k, int *from, int *n, int *to) {
    int begin = (a->first + k) * a->chunk;
    int low = a->low > begin ? a->low : begin;
    int high = a->high < begin + a->chunk ? a->high : begin + a->chunk;
    *from = low - begin, *n = high - low, *to = low - a->start;
}

/* Entry i of a table of uint16 or uint32. */
static ALWAYS_INLINE uint64_t entry(const void *table, size_t i, size_t itemsize) {
    return itemsize == 2 ? ((const uint16_t *)table)[i] : ((const uint32_t *)table)[i];
}

/* Where the box's chunks lie in their shard, from the sizes of its chunks, which follow each other in
   it: those before a chunk add up to its offset. `first` is the number of the channel's first chunk;
   0 where the sizes end too early. */
static ALWAYS_INLINE int look_up(const Crop *crop, const void *table, size_t itemsize, size_t n,
                                 size_t first, const int *shape, uint64_t *offsets,
                                 int64_t *sizes) {
    const Axis *axes = crop->axes;
    size_t ny = ((size_t)shape[1] + axes[1].chunk - 1) / axes[1].chunk;
    size_t nx = ((size_t)shape[2] + axes[2].chunk - 1) / axes[2].chunk, seen = 0;
    uint64_t sum = 0;
    for (int z = 0; z < axes[0].count; z++)
        for (int y = 0; y < axes[1].count; y++) {
            size_t row = (size_t)(axes[0].first + z) * ny + axes[1].first + y;
            size_t begin = first + row * nx + axes[2].first, end = begin + axes[2].count;
            if (end > n) return 0;
            for (; seen < begin; seen++) sum += entry(table, seen, itemsize);
            for (; seen < end; seen++) {
                *offsets++ = sum;
                *sizes = (int64_t)entry(table, seen, itemsize);
                sum += (uint64_t)*sizes++;
            }
        }
    return 1;
}

/* Tell the kernel all that will be read, so that a disk works on it at once. */
static void ask(Crop *crop) {
    ptrdiff_t n = (ptrdiff_t)crop->axes[0].count * crop->axes[1].count, nx = crop->axes[2].count;
    crop->asked = 1;
#ifdef POSIX_FADV_WILLNEED
    for (ptrdiff_t row = 0; row < n; row++) {
        ptrdiff_t a = row * nx, b = a + nx - 1;
        while (a < b && !crop->sizes[a]) a++;
        while (b > a && !crop->sizes[b]) b--;
        if (crop->sizes[a])
            posix_fadvise(crop->fd, (off_t)crop->offsets[a],
                          (off_t)(crop->offsets[b] + crop->sizes[b] - crop->offsets[a]),
                          POSIX_FADV_WILLNEED);
    }
#endif
}

static int read_range(Crop *crop, uint8_t *to, size_t n, uint64_t offset) {
#ifdef RWF_NOWAIT
    if (!crop->asked) {
        struct iovec part = {to, n};
        ssize_t got = preadv2(crop->fd, &part, 1, (off_t)offset, RWF_NOWAIT);
        if (got == (ssize_t)n) return OK;
        ask(crop);
    }
#endif
    while (n) {
        ssize_t got = pread(crop->fd, to, n, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            crop->detail = got < 0 ? errno : (long long)offset;
            return got < 0 ? IO_ERROR : SHORT_FILE;
        }
        to += got, offset += got, n -= got;
    }
    return OK;
}

/* Bytes that reading a row of chunks may take. */
static size_t row_bytes(const Crop *crop, ptrdiff_t base) {
    size_t total = 0;
    for (ptrdiff_t k = 0; k < crop->axes[2].count; k++) total += crop->sizes[base + k] + GAP;
    return total;
}

/* Read the row's chunks from the file, neighbours at once; `stored` then points to each. */
static int read_row(Crop *crop, ptrdiff_t base) {
    ptrdiff_t nx = crop->axes[2].count;
    uint8_t *to = crop->buffer;
    for (ptrdiff_t k = 0; k < nx;) {
        ptrdiff_t first = k;
        uint64_t begin = crop->offsets[base + k], end = begin;
        for (; k < nx; k++) {
            uint64_t size = crop->sizes[base + k], at = crop->offsets[base + k];
            if (!size) continue;
            if (end == begin) begin = end = at;
            if (at < end || at - end > GAP) break;
            crop->stored[base + k] = to + (at - begin);
            end = at + size;
        }
        int code = end > begin ? read_range(crop, to, end - begin, begin) : OK;
        if (code) {
            crop->failed = base + first;
            return code;
        }
        to += end - begin;
        crop->read_bytes += end - begin;
    }
    return OK;
}
