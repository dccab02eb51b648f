/* The chunks of a crop, row by row of them: checked, decoded and written where they belong. */

#pragma once
#include <time.h>
#include "cast.h"
#include "crc32c.h"
#include "crop.h"
#include "planes.h"

enum { MAX_JOINT = 1 << 17 }; /* bytes of a chunk that is decoded beside those of its row */

/* The box's part of an absent chunk: `value` in every voxel. A macro for its types. */
#define FILLER(type)                                                                               \
    static void fill_##type(const Cast *cast, const Slab *slab, const uint8_t *value) {            \
        const Slab part = *slab; /* copies: nothing that is written can change them */             \
        const ptrdiff_t sz = cast->stride[0], sy = cast->stride[1], n = part.runs->n;              \
        ptrdiff_t step = cast->stride[2] / (ptrdiff_t)sizeof(type), first = part.runs->to;         \
        type filler;                                                                               \
        memcpy(&filler, value, sizeof filler);                                                     \
        if (step == -1) first -= (n - 1) * (ptrdiff_t)sizeof(type), step = 1;                      \
        for (ptrdiff_t z = 0; z < part.nz; z++)                                                    \
            for (ptrdiff_t y = 0; y < part.ny; y++) {                                              \
                type *to = (type *)(part.out + z * sz + y * sy + first);                           \
                if (step == 1) /* apart, for the compiler to vectorise it */                       \
                    for (ptrdiff_t i = 0; i < n; i++) to[i] = filler;                              \
                else                                                                               \
                    for (ptrdiff_t i = 0; i < n; i++) to[i * step] = filler;                       \
            }                                                                                      \
    }
FILLER(uint8_t)
FILLER(uint16_t)
FILLER(uint32_t)

static void fill_run(const Cast *cast, const Slab *slab, const uint8_t *value) {
    int size = cast->mode == COPY ? cast->size : cast->mode == FLOAT32 ? 4 : 2;
    if (size == 4) fill_uint32_t(cast, slab, value);
    else if (size == 2) fill_uint16_t(cast, slab, value);
    else fill_uint8_t(cast, slab, value);
}

/* The box's voxels of a chunk of several blocks, block by block. */
static int write_blocks(const Crop *crop, const Frame *frame, const Slab *slab, ptrdiff_t first) {
    ptrdiff_t count = frame->block / frame->size, voxels = frame->total / frame->size;
    ptrdiff_t n = slab->runs->n;
    ptrdiff_t last = first + (slab->nz - 1) * slab->plane + (slab->ny - 1) * slab->row + n;
    for (ptrdiff_t i = first / count; i * count < last; i++) {
        ptrdiff_t begin = i * count, end = begin + count < voxels ? begin + count : voxels;
        Run run = {.before = 0, .behind = 0}; /* a block may begin or end within a row */
        int code = block_planes(frame, i, last - begin, crop->scratch, run.planes);
        if (code) return code;
        const uint8_t *planes[MAX_TYPESIZE];
        memcpy(planes, run.planes, sizeof planes);
        for (ptrdiff_t z = 0; z < slab->nz; z++)
            for (ptrdiff_t y = 0; y < slab->ny; y++) {
                ptrdiff_t row = first + z * slab->plane + y * slab->row;
                ptrdiff_t a = row > begin ? row : begin, b = row + n < end ? row + n : end;
                if (a >= b) continue;
                for (int k = 0; k < MAX_TYPESIZE; k++)
                    run.planes[k] = planes[k] + (k < crop->cast.size ? a - begin : 0);
                run.n = b - a;
                run.to = slab->runs->to + (a - row) * crop->cast.stride[2];
                Slab part = {.runs = &run,
                             .n_runs = 1,
                             .nz = 1,
                             .ny = 1,
                             .out =
                                 slab->out + z * crop->cast.stride[0] + y * crop->cast.stride[1]};
                write_slab(&part, &crop->cast);
            }
    }
    return OK;
}

/* Check and decode the chunks of a row and write their part of the crop. */
static int row_of_chunks(Crop *crop, ptrdiff_t base, int z, int y) {
    const Axis *axes = crop->axes;
    const Cast *cast = &crop->cast;
    int from[3], n[3], to[3], code;
    span(&axes[0], z, &from[0], &n[0], &to[0]);
    span(&axes[1], y, &from[1], &n[1], &to[1]);
    ptrdiff_t row = axes[2].chunk, plane = row * axes[1].chunk;
    size_t total = (size_t)plane * axes[0].chunk * cast->size, step = scratch_bytes(total);
    Slab slab = {.runs = crop->runs,
                 .nz = n[0],
                 .ny = n[1],
                 .plane = plane,
                 .row = row,
                 .out = cast->out + to[0] * cast->stride[0] + to[1] * cast->stride[1]};
    for (int x = 0; x < axes[2].count; x++) {
        const uint8_t *stored = crop->stored[base + x];
        int64_t nbytes = crop->sizes[base + x];
        Run run;
        span(&axes[2], x, &from[2], &n[2], &to[2]);
        run.n = n[2], run.to = to[2] * cast->stride[2];
        run.before = from[2], run.behind = row - from[2] - n[2];
        Slab alone = slab;
        alone.runs = &run, alone.n_runs = 1;
        crop->failed = base + x;
        if (!nbytes) {
            fill_run(cast, &alone, crop->empty);
            continue;
        }
        if (nbytes < HEADER + CRC_BYTES) return BAD_CRC;
        nbytes -= CRC_BYTES;
        if (crc32c(stored, nbytes) != le32(stored + nbytes)) return BAD_CRC;
        Frame frame;
        if ((code = open_frame(&frame, stored, nbytes, total, cast->size))) return code;
        ptrdiff_t first = from[0] * plane + from[1] * row + from[2];
        if (frame.block < total || total > MAX_JOINT) {
            if ((code = write_blocks(crop, &frame, &alone, first))) return code;
            continue;
        }
        ptrdiff_t last = first + (n[0] - 1) * plane + (n[1] - 1) * row + n[2];
        if ((code = block_planes(&frame, 0, last, crop->scratch + x * step, run.planes)))
            return code;
        for (int b = 0; b < cast->size; b++) run.planes[b] += first;
        crop->runs[slab.n_runs++] = run;
    }
    if (slab.n_runs) write_slab(&slab, cast);
    return OK;
}

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* All of the crop; NO_MEMORY, with the bytes wanted in `detail`, where the scratch is too small. */
static int all_rows(Crop *crop) {
    const Axis *axes = crop->axes;
    ptrdiff_t rows = (ptrdiff_t)axes[0].count * axes[1].count, nx = axes[2].count;
    size_t total = (size_t)axes[0].chunk * axes[1].chunk * axes[2].chunk * crop->cast.size;
    size_t decoding = scratch_bytes(total) * (total > MAX_JOINT ? 1 : nx), reading = 0;
    for (ptrdiff_t row = 0; row < rows && crop->fd >= 0; row++)
        if (row_bytes(crop, row * nx) > reading) reading = row_bytes(crop, row * nx);
    if (decoding + reading > crop->capacity) {
        crop->detail = decoding + reading;
        return NO_MEMORY;
    }
    crop->buffer = crop->scratch + decoding;
    for (ptrdiff_t row = 0; row < rows; row++) {
        long long began = now_ns();
        int code = crop->fd < 0 ? OK : read_row(crop, row * nx);
        crop->read_ns += now_ns() - began;
        if (!code) code = row_of_chunks(crop, row * nx, row / axes[1].count, row % axes[1].count);
        if (code) return code;
    }
    crop->failed = rows * nx;
    return OK;
}
