/* blosc frames to raw lz4 and zstd streams, laid out for a batched decompressor; blosc_frame.py has
   the same in Python, stream by stream. What blosc left uncompressed is wrapped: an lz4 block of
   literals only, or a zstd frame of one raw block. */

#pragma once
#include "bits.h"
#include "crc32c.h"
#include "frame.h"

enum { NO_ROOM = 8, PACK_ALIGN = 16, ZSTD_BLOCK = 1 << 17 };
enum { LZ4_FORMAT = 1, ZSTD_FORMAT = 4 };

typedef struct {
    uint8_t *out;
    size_t used, room; /* bytes of out */
    int64_t *rows;     /* of each stream: offset in out, bytes, place in the chunk, bytes decoded */
    size_t n_rows, row_room;
    size_t total, size; /* bytes of a chunk and of a voxel */
    uint8_t *shuffled;  /* room for a chunk */
} Pack;

/* One stream of n bytes that decodes to `size` at `at`; `raw` ones are wrapped for `format`. */
static int put_stream(Pack *pack, const uint8_t *data, size_t n, int raw, int format, size_t at,
                      size_t size) {
    uint8_t head[16];
    size_t heading = 0, runs = raw && format == LZ4_FORMAT && n >= 15 ? (n - 15) / 255 : 0;
    if (raw && format == LZ4_FORMAT) {
        head[heading++] = n < 15 ? (uint8_t)(n << 4) : 0xF0;
    } else if (raw) {
        static const uint8_t magic[5] = {0x28, 0xB5, 0x2F, 0xFD, 0xA0};
        if (n > ZSTD_BLOCK) return OTHER;
        memcpy(head, magic, 5);
        for (int k = 0; k < 4; k++) head[5 + k] = (uint8_t)(n >> 8 * k);
        for (int k = 0; k < 3; k++) head[9 + k] = (uint8_t)((n << 3 | 1) >> 8 * k);
        heading = 12;
    }
    size_t length = heading + (raw && format == LZ4_FORMAT && n >= 15 ? runs + 1 : 0) + n;
    if (pack->n_rows == pack->row_room || pack->used + length + PACK_ALIGN > pack->room)
        return NO_ROOM;
    uint8_t *to = pack->out + pack->used;
    memcpy(to, head, heading);
    to += heading;
    if (raw && format == LZ4_FORMAT && n >= 15) {
        memset(to, 0xFF, runs);
        to[runs] = (uint8_t)((n - 15) % 255);
        to += runs + 1;
    }
    memcpy(to, data, n);
    int64_t *row = pack->rows + 4 * pack->n_rows++;
    row[0] = pack->used, row[1] = length, row[2] = at, row[3] = size;
    pack->used += (length + PACK_ALIGN - 1) / PACK_ALIGN * PACK_ALIGN;
    return 0;
}

/* Voxels in order to planes of bytes or, with `bits`, of bits: what blosc would have shuffled. */
static void shuffle_block(const uint8_t *plain, size_t length, size_t size, int bits, uint8_t *to) {
    size_t count = length / size;
    for (size_t b = 0; b < size && !bits; b++)
        for (size_t v = 0; v < count; v++) to[b * count + v] = plain[v * size + b];
    for (size_t b = 0; b < size && bits; b++)
        for (size_t j = 0; j < count / 8; j++) {
            uint64_t eight = 0;
            for (int k = 0; k < 8; k++)
                eight |= (uint64_t)plain[(8 * j + k) * size + b] << 8 * k;
            TRANSPOSE(eight);
            for (int k = 0; k < 8; k++) to[(8 * b + k) * (count / 8) + j] = (uint8_t)(eight >> 8 * k);
        }
}

/* The streams of a stored chunk; `layout` becomes its block's bytes, 1 if by bits, its format. */
static int pack_chunk(Pack *pack, const uint8_t *data, size_t nbytes, int64_t *layout) {
    if (nbytes < HEADER + 4) return BAD_FRAME;
    nbytes -= 4;
    if (crc32c(data, nbytes) != le32(data + nbytes)) return BAD_FRAME;
    size_t total = pack->total, size = pack->size, block = le32(data + 8);
    uint8_t flags = data[2];
    int stored = flags & 2, bits = flags & 4, format = flags >> 5, code;
    if (le32(data + 4) != total || data[3] != size || !block || block > total || block % size)
        return BAD_FRAME;
    if ((format != LZ4_FORMAT && format != ZSTD_FORMAT) || (size > 1 && !(flags & 7))) return OTHER;
    if (bits && (total / size % 8 || block / size % 8)) return OTHER;
    size_t blocks = (total + block - 1) / block;
    if (nbytes < HEADER + (stored ? total : 4 * blocks)) return BAD_FRAME;
    Frame frame = {.data = data, .nbytes = nbytes};
    for (size_t i = 0, begin = 0; i < blocks; i++, begin += block) {
        size_t length = total - begin < block ? total - begin : block;
        if (stored) {
            shuffle_block(data + HEADER + begin, length, size, bits, pack->shuffled);
            code = put_stream(pack, pack->shuffled, length, 1, format, begin, length);
            if (code) return code;
            continue;
        }
        size_t at = le32(data + HEADER + 4 * i), n;
        int split = !(flags & 16) && length == block && block / size >= MIN_SPLIT_VOXELS;
        size_t streams = split ? size : 1, part = length / streams;
        for (size_t s = 0; s < streams; s++) {
            const uint8_t *from = stream(&frame, at, &n);
            if (!from) return BAD_FRAME;
            code = put_stream(pack, from, n, n == part, format, begin + s * part, part);
            if (code) return code;
            at += 4 + n;
        }
    }
    layout[0] = block, layout[1] = bits != 0, layout[2] = format;
    return 0;
}
