/* A stored chunk: a blosc frame (c-blosc 1 format) of streams, and its crc32c behind it. */

#pragma once
#include <stddef.h>
#include <stdint.h>
#include "codes.h"

enum { HEADER = 16, MIN_SPLIT_VOXELS = 128 };

/* A frame of `nbytes` that decodes to `total` bytes in blocks of `block`. */
typedef struct {
    const uint8_t *data;
    size_t nbytes, total, block, size;
    int stored, shuffled, bits, split; /* shuffled: by bytes or, with `bits`, by bits */
} Frame;

static uint32_t le32(const uint8_t *p) {
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* The stream at `at`, behind its length; 0 where it overruns the frame. */
static const uint8_t *stream(const Frame *frame, size_t at, size_t *nbytes) {
    if (at > frame->nbytes - 4) return 0;
    *nbytes = le32(frame->data + at);
    return *nbytes > frame->nbytes - at - 4 ? 0 : frame->data + at + 4;
}
