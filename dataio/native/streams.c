/* Stored chunks to raw lz4 and zstd streams, laid out for a batched decompressor; blosc_frame.py has
   the same in Python, stream by stream. What blosc left uncompressed is wrapped: an lz4 block of
   literals only, or a zstd frame of one raw block. */

#include "module.h"
#include "crc32c.h"
#include "frame.h"
#include "transpose.h"

enum { PACK_ALIGN = 16, ZSTD_BLOCK = 1 << 17 };
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
            for (int k = 0; k < 8; k++) eight |= (uint64_t)plain[(8 * j + k) * size + b] << 8 * k;
            eight = transposed(eight);
            for (int k = 0; k < 8; k++)
                to[(8 * b + k) * (count / 8) + j] = (uint8_t)(eight >> 8 * k);
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

/* pack(list of stored chunks, chunk bytes, voxel bytes, out (bytes), used, rows (m, 4) int64, number
   of rows, counts (n) int64, layouts (n, 3) int64) -> (code, chunks done, used, rows); see
   device/streams.py. */
static PyObject *pack_chunks(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *list, *objects[4], *result = NULL;
    Py_ssize_t total, size, used, n_rows, done = 0;
    if (!PyArg_ParseTuple(args, "O!nnOnOnOO", &PyList_Type, &list, &total, &size, &objects[0],
                          &used, &objects[1], &n_rows, &objects[2], &objects[3]))
        return NULL;
    Py_buffer outs[4], *views = NULL;
    Py_ssize_t n = PyList_GET_SIZE(list), held = 0;
    int opened = 0, code = 0;
    const int flags[4] = {WRITE, WRITE, WRITE, WRITE};
    uint8_t *shuffled = NULL;
    if (!hold_buffers(objects, flags, 4, outs, &opened)) goto release;
    if (total < 1 || size < 1 || size > 255 || total % size || used < 0 || used > outs[0].len ||
        n_rows < 0 || n_rows > outs[1].len / 32 || outs[2].len < 8 * n || outs[3].len < 24 * n) {
        PyErr_SetString(PyExc_ValueError, "chunks, rows and room do not fit each other");
        goto release;
    }
    views = PyMem_Calloc(n + 1, sizeof *views);
    shuffled = PyMem_Malloc(total);
    if (!views || !shuffled) {
        PyErr_NoMemory();
        goto release;
    }
    if (!hold_list(list, views, &held)) goto release;
    Pack pack = {outs[0].buf,      used,  outs[0].len, outs[1].buf, n_rows,
                 outs[1].len / 32, total, size,        shuffled};
    int64_t *counts = outs[2].buf, *layouts = outs[3].buf;
    Py_BEGIN_ALLOW_THREADS
    for (; done < n; done++) {
        size_t before = pack.n_rows, began = pack.used;
        code = pack_chunk(&pack, views[done].buf, views[done].len, layouts + 3 * done);
        if (code) { /* nothing of it stays */
            pack.n_rows = before, pack.used = began;
            break;
        }
        counts[done] = pack.n_rows - before;
    }
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("innn", code, done, (Py_ssize_t)pack.used, (Py_ssize_t)pack.n_rows);
release:
    release_buffers(views, held);
    release_buffers(outs, opened);
    PyMem_Free(views);
    PyMem_Free(shuffled);
    return result;
}

static PyMethodDef methods[] = {
    {"pack", pack_chunks, METH_VARARGS, "Lay the streams of chunks side by side."},
    {"instructions", use_instructions, METH_VARARGS, "The instruction set in use."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_streams", .m_size = -1,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit__streams(void) {
    crc_prepare();
    choose_instructions("");
    return PyModule_Create(&module);
}
