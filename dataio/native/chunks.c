/* Chunks out of a volume, their frames, and what is measured of the volume.

   The volume's axes lie in memory anyhow, in either byte order and at odd addresses. It is read in
   the order of the memory and written into chunks that stay in the cache. The GIL is released; shapes and starts are checked against the buffers. */

#include "module.h"
#include <stdint.h>
#include <string.h>
#include "crc32c.h"
#include "gather.h"
#include "measures.h"

/* gather(voxels (z, y, x), z, y, chunks (n, z, y, x), swap): the chunks along x that begin at z, y;
   zeros beyond the volume's edge. A whole row at once, for its memory is read in long runs. */
static PyObject *gather(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *objects[2];
    Py_ssize_t z, y;
    int swap, held = 0, fits = 0;
    if (!PyArg_ParseTuple(args, "OnnOp", &objects[0], &z, &y, &objects[1], &swap)) return NULL;
    Py_buffer views[2];
    const int flags[2] = {PyBUF_STRIDES, WRITE};
    if (!hold_buffers(objects, flags, 2, views, &held)) goto done;
    const Py_buffer voxels = views[0], chunks = views[1];
    Py_ssize_t bytes = voxels.itemsize;
    fits = voxels.ndim == 3 && chunks.ndim == 4 && chunks.itemsize == bytes && chunks.len &&
           (bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8) && z >= 0 && y >= 0 &&
           z < voxels.shape[0] && y < voxels.shape[1] && voxels.shape[2] > 0 &&
           (voxels.shape[2] - 1) / chunks.shape[3] + 1 == chunks.shape[0];
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "voxels, start and chunks do not fit each other");
    } else {
        Py_BEGIN_ALLOW_THREADS
        Py_ssize_t depth = voxels.shape[0] - z, height = voxels.shape[1] - y;
        Py_ssize_t side = chunks.shape[3], whole = voxels.shape[2] / side;
        Py_ssize_t rest = voxels.shape[2] % side;
        Py_ssize_t size[3] = {depth < chunks.shape[1] ? depth : chunks.shape[1],
                              height < chunks.shape[2] ? height : chunks.shape[2], side};
        const char *from = (const char *)voxels.buf + z * voxels.strides[0] + y * voxels.strides[1];
        char *to = chunks.buf;
        if (rest || size[0] < chunks.shape[1] || size[1] < chunks.shape[2])
            memset(to, 0, chunks.len);
        if (whole) copy(&voxels, &chunks, from, to, whole, size, swap);
        size[2] = rest;
        from += whole * side * voxels.strides[2];
        if (rest) copy(&voxels, &chunks, from, to + whole * chunks.strides[0], 1, size, swap);
        Py_END_ALLOW_THREADS
    }
done:
    release_buffers(views, held);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

/* c-blosc's blosc_compress_ctx: the caller has its address in the library that readers use. */
typedef int (*Compress)(int level, int shuffle, size_t itemsize, size_t n, const void *from,
                        void *to, size_t room, const char *name, size_t block, int threads);

enum { FRAME_OVERHEAD = 16 }; /* bytes a frame can be longer than its chunk */

typedef struct {
    Compress compress;
    const char *name;
    int level, shuffle; /* shuffle: c-blosc's 1 by bytes, 2 by bits */
    Py_ssize_t block;
} Codec;

static int all_zero(const char *p, Py_ssize_t n) { return !*p && !memcmp(p, p + 1, n - 1); }

/* Frame and checksum of every chunk one after the other; their lengths and checksums in `marks`.
   Returns the bytes written, or minus the number of the chunk that failed, from 1. */
static Py_ssize_t encode_all(const Codec *codec, const Py_buffer *chunks, uint8_t *to,
                             uint32_t *marks) {
    Py_ssize_t n = chunks->len / chunks->shape[0], used = 0;
    for (Py_ssize_t i = 0; i < chunks->shape[0]; i++) {
        const char *chunk = (const char *)chunks->buf + i * n;
        marks[2 * i] = marks[2 * i + 1] = 0;
        if (all_zero(chunk, n)) continue;
        int got = codec->compress(codec->level, codec->shuffle, chunks->itemsize, n, chunk,
                                  to + used, n + FRAME_OVERHEAD, codec->name, codec->block, 1);
        if (got <= 0 || got > n + FRAME_OVERHEAD) return -1 - i;
        uint32_t crc = crc32c(to + used, got);
        used += got;
        for (int k = 0; k < CRC_BYTES; k++) to[used++] = (uint8_t)(crc >> 8 * k);
        marks[2 * i] = (uint32_t)(got + CRC_BYTES);
        marks[2 * i + 1] = crc;
    }
    return used;
}

/* encode(compress, name, level, shuffle, block, chunks (n, ...), out (bytes), marks (n, 2) uint32) -> bytes
   used of `out`: frames, each with its crc32c. Chunks of zeros are left out, with
   both marks 0. RuntimeError where blosc fails. */
static PyObject *encode(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *address, *objects[3];
    Codec codec;
    if (!PyArg_ParseTuple(args, "OsiinOOO", &address, &codec.name, &codec.level, &codec.shuffle,
                          &codec.block, &objects[0], &objects[1], &objects[2]))
        return NULL;
    void *function = PyLong_AsVoidPtr(address);
    if (!function && PyErr_Occurred()) return NULL;
    memcpy(&codec.compress, &function, sizeof function);
    Py_buffer views[3];
    PyObject *result = NULL;
    int held = 0;
    const int flags[3] = {PyBUF_C_CONTIGUOUS, WRITE, WRITE};
    if (!hold_buffers(objects, flags, 3, views, &held)) goto done;
    const Py_buffer *chunks = &views[0], *out = &views[1], *marks = &views[2];
    int fits = function && codec.block > 0 && chunks->ndim > 1 && chunks->len > 0 &&
               chunks->itemsize > 0 && chunks->itemsize < 256;
    if (fits) {
        Py_ssize_t count = chunks->shape[0], n = chunks->len / count;
        fits = n <= INT32_MAX - FRAME_OVERHEAD - CRC_BYTES && marks->itemsize == sizeof(uint32_t) &&
               marks->len / (Py_ssize_t)(2 * sizeof(uint32_t)) >= count &&
               out->len / (n + FRAME_OVERHEAD + CRC_BYTES) >= count;
    }
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "chunks, codec and room do not fit each other");
        goto done;
    }
    Py_ssize_t used;
    Py_BEGIN_ALLOW_THREADS
    used = encode_all(&codec, chunks, out->buf, marks->buf);
    Py_END_ALLOW_THREADS
    if (used < 0)
        PyErr_Format(PyExc_RuntimeError, "blosc cannot encode chunk %zd of %zd with %s", -1 - used,
                     chunks->shape[0], codec.name);
    else result = PyLong_FromSsize_t(used);
done:
    release_buffers(views, held);
    return result;
}

/* profiles(voxels (z, y, x), signed, least (1), largest along z, y, x): integers of 1 or 2 bytes,
   aligned and native, with contiguous rows */
static PyObject *profiles(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *objects[5];
    int sign, held = 0, fits = 0;
    if (!PyArg_ParseTuple(args, "OpOOOO", &objects[0], &sign, &objects[1], &objects[2], &objects[3],
                          &objects[4]))
        return NULL;
    Py_buffer views[5];
    char *out[4];
    const int flags[5] = {PyBUF_STRIDES, WRITE, WRITE, WRITE, WRITE};
    if (!hold_buffers(objects, flags, 5, views, &held)) goto done;
    Py_ssize_t size = views[0].itemsize;
    fits = views[0].ndim == 3 && (size == 1 || size == 2) && views[0].strides[2] == size;
    for (int i = 0; fits && i < 4; i++) {
        Py_ssize_t n = i ? views[0].shape[i - 1] : 1;
        fits = n > 0 && views[i + 1].len == n * size;
        out[i] = views[i + 1].buf;
    }
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "voxels and profiles do not fit each other");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    if (size == 1) (sign ? profile_int8_t : profile_uint8_t)(&views[0], out);
    else (sign ? profile_int16_t : profile_uint16_t)(&views[0], out);
    Py_END_ALLOW_THREADS
done:
    release_buffers(views, held);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

/* tally(voxels (n), signed, least, counts (m) int64): add to `counts` how often each value from
   `least` on is among the voxels, integers of 1 or 2 bytes, aligned and native. ValueError where one
   is none of these m values. */
static PyObject *tally(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *objects[2];
    int least, sign, held = 0, fits = 0;
    if (!PyArg_ParseTuple(args, "OpiO", &objects[0], &sign, &least, &objects[1])) return NULL;
    Py_buffer views[2];
    const int flags[2] = {PyBUF_STRIDES, WRITE};
    uint32_t *lanes = NULL;
    if (!hold_buffers(objects, flags, 2, views, &held)) goto done;
    const Py_buffer *voxels = &views[0], *counts = &views[1];
    const Py_ssize_t size = voxels->itemsize, room = counts->len / (Py_ssize_t)sizeof(int64_t);
    fits = voxels->ndim == 1 && (size == 1 || size == 2) && counts->itemsize == sizeof(int64_t) &&
           room > 0 && room <= 1 << 16 && voxels->shape[0] <= UINT32_MAX && least >= INT16_MIN &&
           least <= UINT16_MAX;
    if (fits && !(lanes = calloc(LANES * (room + 1), sizeof *lanes))) {
        fits = 0;
        PyErr_NoMemory();
        goto done;
    }
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        const Py_ssize_t n = voxels->shape[0], step = voxels->strides[0];
        if (size == 1)
            (sign ? tally_int8_t : tally_uint8_t)(voxels->buf, n, step, least, lanes, room);
        else (sign ? tally_int16_t : tally_uint16_t)(voxels->buf, n, step, least, lanes, room);
        for (int k = 0; k < LANES; k++) fits &= !lanes[k * (room + 1) + room];
        for (Py_ssize_t i = 0; fits && i < room; i++)
            for (int k = 0; k < LANES; k++)
                ((int64_t *)counts->buf)[i] += lanes[k * (room + 1) + i];
        Py_END_ALLOW_THREADS
    }
    if (!fits) PyErr_SetString(PyExc_ValueError, "voxels and counts do not fit each other");
done:
    free(lanes);
    release_buffers(views, held);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"gather", gather, METH_VARARGS, "Write a row of chunks of a volume, each contiguous."},
    {"encode", encode, METH_VARARGS, "Frames and checksums of chunks, one after the other."},
    {"profiles", profiles, METH_VARARGS, "The least voxel, and the largest of every plane."},
    {"tally", tally, METH_VARARGS, "How often each value is among small integers."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_chunks", .m_size = -1,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit__chunks(void) {
    crc_prepare();
    choose_instructions("");
    return PyModule_Create(&module);
}
