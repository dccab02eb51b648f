/* Frames of lz4 to planes of bytes, one plane per byte of a voxel. */

#pragma once
#include "bits.h"
#include "frame.h"
#include "lz4.h"

enum { MAX_TYPESIZE = 4 };

/* Bytes to decode a chunk of `total` bytes into: what lz4 gives, and planes made of that. */
static size_t scratch_bytes(size_t total) { return 2 * total + 8 * SLACK; }

static int open_frame(Frame *frame, const uint8_t *data, size_t nbytes, size_t total, int size) {
    if (nbytes < HEADER || le32(data + 4) != total || data[3] != size) return BAD_FRAME;
    uint8_t flags = data[2];
    *frame = (Frame){.data = data,
                     .nbytes = nbytes,
                     .total = total,
                     .size = size,
                     .block = le32(data + 8),
                     .stored = flags & 2,
                     .bits = flags & 4,
                     .split = !(flags & 16)};
    frame->shuffled = frame->bits || ((flags & 1) && size > 1);
    if (!frame->stored && (flags >> 5 != 1 || (!frame->shuffled && size > 1 && frame->split)))
        return OTHER;
    /* A block longer than the chunk would overrun the scratch; blosc never writes one. */
    if (frame->block == 0 || frame->block % size || frame->block > total) return BAD_FRAME;
    /* blosc leaves the rest of a block that is no multiple of 8 voxels as it is: left to blosc. */
    if (frame->bits && !frame->stored && (frame->block / size % 8 || total / size % 8))
        return OTHER;
    size_t blocks = (total + frame->block - 1) / frame->block;
    return nbytes < HEADER + (frame->stored ? total : 4 * blocks) ? BAD_FRAME : 0;
}

/* Part interleaved voxels into planes. */
static void part_bytes(const uint8_t *plain, size_t count, size_t size, uint8_t *parted,
                       const uint8_t **planes) {
    for (size_t b = 0; b < size; b++) {
        planes[b] = parted + b * count;
        for (size_t v = 0; v < count; v++) parted[b * count + v] = plain[v * size + b];
    }
}

/* Planes of block i, of which the first `need` voxels will be read: pointers into the frame where
   bytes were stored raw, else into the scratch. */
static int block_planes(const Frame *frame, size_t i, size_t need, uint8_t *scratch,
                        const uint8_t **planes) {
    size_t begin = i * frame->block, size = frame->size, nbytes;
    size_t length = frame->total - begin < frame->block ? frame->total - begin : frame->block;
    size_t count = length / size;
    uint8_t *parted = scratch + frame->total + MAX_TYPESIZE * SLACK;
    if (need > count) need = count;
    for (int b = 0; b < MAX_TYPESIZE; b++) planes[b] = scratch;
    if (frame->stored) {
        const uint8_t *plain = frame->data + HEADER + begin;
        planes[0] = plain;
        if (size > 1) part_bytes(plain, need, size, parted, planes);
        return 0;
    }
    size_t at = le32(frame->data + HEADER + 4 * i);
    int split = frame->shuffled && size > 1 && frame->split && length == frame->block &&
                frame->block / size >= MIN_SPLIT_VOXELS;
    size_t streams = split ? size : 1, part = length / streams;
    for (size_t s = 0; s < streams; s++) {
        const uint8_t *data = stream(frame, at, &nbytes);
        if (!data) return BAD_FRAME;
        at += 4 + nbytes;
        if (nbytes != part) {
            /* A prefix of the stream does only where it is the prefix of one plane of bytes. */
            int prefix = streams == size && !frame->bits && frame->shuffled;
            if (lz4(data, nbytes, scratch, part, prefix ? need : part)) return BAD_LZ4;
            data = scratch;
            scratch += part + SLACK;
        }
        if (split) planes[s] = data;
        else if (frame->shuffled)
            for (size_t b = 0; b < size; b++) planes[b] = data + b * count;
        else if (size == 1) planes[0] = data;
        else part_bytes(data, count, size, parted, planes);
    }
    if (frame->bits)
        for (size_t b = 0; b < size; b++) {
            join_bits(planes[b], count / 8, (need + 7) / 8, parted + b * count);
            planes[b] = parted + b * count;
        }
    return 0;
}
