/* Stored chunks to a crop in one call: read, crc32c, LZ4, unshuffle, cut, normalise, flip, cast.

   A row of chunks along x at a time: its bytes are read and decoded while they are in the cache,
   and rows of the crop are written from end to end. Planes that blosc stored uncompressed are read
   where they lie; only the crop's voxels are unshuffled. The GIL is released; every read and write
   is bounded by the frame's and the crop's sizes, whatever the bytes say. Arithmetic as numpy does
   it: cast to float32, clip, multiply, add, each rounded on its own (-ffp-contract=off). */

#define PY_SSIZE_T_CLEAN
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include "crc32c.h"
#include "frame.h"
#include "pack.h"

enum { OK = 0, NO_MEMORY = 3, BAD_CRC = 5, IO_ERROR = 6, SHORT_FILE = 7 };
enum { GAP = 4096, MAX_JOINT = 1 << 17, CRC_BYTES = 4 };

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
    Py_ssize_t failed; /* the chunk that an error is about */
    long long detail;  /* errno, or where the file ends, or the scratch wanted */
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

/* Where the box's chunks lie in their shard, from the sizes of its chunks, which follow each other in
   it: those before a chunk add up to its offset. `first` is the number of the channel's first chunk;
   0 where the sizes end too early. */
#define LOOKER(type)                                                                             \
    static int look_up_##type(const Crop *crop, const type *table, size_t n, size_t first,       \
                              const int *shape, uint64_t *offsets, int64_t *sizes) {             \
        const Axis *axes = crop->axes;                                                           \
        size_t ny = ((size_t)shape[1] + axes[1].chunk - 1) / axes[1].chunk;                      \
        size_t nx = ((size_t)shape[2] + axes[2].chunk - 1) / axes[2].chunk, seen = 0;            \
        uint64_t sum = 0;                                                                        \
        for (int z = 0; z < axes[0].count; z++)                                                  \
            for (int y = 0; y < axes[1].count; y++) {                                            \
                size_t row = (size_t)(axes[0].first + z) * ny + axes[1].first + y;               \
                size_t begin = first + row * nx + axes[2].first, end = begin + axes[2].count;    \
                if (end > n) return 0;                                                           \
                for (; seen < begin; seen++) sum += table[seen];                                 \
                for (; seen < end; seen++) {                                                     \
                    *offsets++ = sum, *sizes++ = table[seen];                                    \
                    sum += table[seen];                                                          \
                }                                                                                \
            }                                                                                    \
        return 1;                                                                                \
    }
LOOKER(uint16_t)
LOOKER(uint32_t)

/* Tell the kernel all that will be read, so that a disk works on it at once. */
static void ask(Crop *crop) {
    Py_ssize_t n = (Py_ssize_t)crop->axes[0].count * crop->axes[1].count, nx = crop->axes[2].count;
    crop->asked = 1;
#ifdef POSIX_FADV_WILLNEED
    for (Py_ssize_t row = 0; row < n; row++) {
        Py_ssize_t a = row * nx, b = a + nx - 1;
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
static size_t row_bytes(const Crop *crop, Py_ssize_t base) {
    size_t total = 0;
    for (Py_ssize_t k = 0; k < crop->axes[2].count; k++) total += crop->sizes[base + k] + GAP;
    return total;
}

/* Read the row's chunks from the file, neighbours at once; `stored` then points to each. */
static int read_row(Crop *crop, Py_ssize_t base) {
    Py_ssize_t nx = crop->axes[2].count;
    uint8_t *to = crop->buffer;
    for (Py_ssize_t k = 0; k < nx;) {
        Py_ssize_t first = k;
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

/* The box's part of an absent chunk: `value` in every voxel. */
#define FILL(type)                                                                               \
    for (ptrdiff_t z = 0; z < slab->nz; z++)                                                     \
        for (ptrdiff_t y = 0; y < slab->ny; y++) {                                               \
            type filler, *to = (type *)(slab->out + z * cast->stride[0] +                        \
                                        y * cast->stride[1] + slab->runs->to);                   \
            memcpy(&filler, value, sizeof filler);                                               \
            ptrdiff_t n = slab->runs->n, step = cast->stride[2] / (ptrdiff_t)sizeof(type);       \
            if (step == -1) to -= n - 1, step = 1;                                               \
            if (step == 1)                                                                       \
                for (ptrdiff_t i = 0; i < n; i++) to[i] = filler;                                \
            else                                                                                 \
                for (ptrdiff_t i = 0; i < n; i++) to[i * step] = filler;                         \
        }

static void fill_run(const Cast *cast, const Slab *slab, const uint8_t *value) {
    int size = cast->mode == COPY ? cast->size : cast->mode == FLOAT32 ? 4 : 2;
    if (size == 4) {
        FILL(uint32_t)
    } else if (size == 2) {
        FILL(uint16_t)
    } else {
        FILL(uint8_t)
    }
}

/* The box's voxels of a chunk of several blocks, block by block. */
static int write_blocks(const Crop *crop, const Frame *frame, const Slab *slab, Py_ssize_t first) {
    Py_ssize_t count = frame->block / frame->size, voxels = frame->total / frame->size;
    Py_ssize_t n = slab->runs->n;
    Py_ssize_t last = first + (slab->nz - 1) * slab->plane + (slab->ny - 1) * slab->row + n;
    for (Py_ssize_t i = first / count; i * count < last; i++) {
        Py_ssize_t begin = i * count, end = begin + count < voxels ? begin + count : voxels;
        Run run = {.before = 0, .behind = 0}; /* a block may begin or end within a row */
        int code = block_planes(frame, i, last - begin, crop->scratch, run.planes);
        if (code) return code;
        const uint8_t *planes[MAX_TYPESIZE];
        memcpy(planes, run.planes, sizeof planes);
        for (Py_ssize_t z = 0; z < slab->nz; z++)
            for (Py_ssize_t y = 0; y < slab->ny; y++) {
                Py_ssize_t row = first + z * slab->plane + y * slab->row;
                Py_ssize_t a = row > begin ? row : begin, b = row + n < end ? row + n : end;
                if (a >= b) continue;
                for (int k = 0; k < MAX_TYPESIZE; k++)
                    run.planes[k] = planes[k] + (k < crop->cast.size ? a - begin : 0);
                run.n = b - a;
                run.to = slab->runs->to + (a - row) * crop->cast.stride[2];
                Slab part = {&run, 1, 1, 1, 0, 0,
                             slab->out + z * crop->cast.stride[0] + y * crop->cast.stride[1]};
                write_slab(&part, &crop->cast);
            }
    }
    return OK;
}

/* Check and decode the chunks of a row and write their part of the crop. */
static int row_of_chunks(Crop *crop, Py_ssize_t base, int z, int y) {
    const Axis *axes = crop->axes;
    const Cast *cast = &crop->cast;
    int from[3], n[3], to[3], code;
    span(&axes[0], z, &from[0], &n[0], &to[0]);
    span(&axes[1], y, &from[1], &n[1], &to[1]);
    Py_ssize_t row = axes[2].chunk, plane = row * axes[1].chunk;
    size_t total = (size_t)plane * axes[0].chunk * cast->size, step = scratch_bytes(total);
    Slab slab = {crop->runs, 0, n[0], n[1], plane, row,
                 cast->out + to[0] * cast->stride[0] + to[1] * cast->stride[1]};
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
        Py_ssize_t first = from[0] * plane + from[1] * row + from[2];
        if (frame.block < total || total > MAX_JOINT) {
            if ((code = write_blocks(crop, &frame, &alone, first))) return code;
            continue;
        }
        Py_ssize_t last = first + (n[0] - 1) * plane + (n[1] - 1) * row + n[2];
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
    Py_ssize_t rows = (Py_ssize_t)axes[0].count * axes[1].count, nx = axes[2].count;
    size_t total = (size_t)axes[0].chunk * axes[1].chunk * axes[2].chunk * crop->cast.size;
    size_t decoding = scratch_bytes(total) * (total > MAX_JOINT ? 1 : nx), reading = 0;
    for (Py_ssize_t row = 0; row < rows && crop->fd >= 0; row++)
        if (row_bytes(crop, row * nx) > reading) reading = row_bytes(crop, row * nx);
    if (decoding + reading > crop->capacity) {
        crop->detail = decoding + reading;
        return NO_MEMORY;
    }
    crop->buffer = crop->scratch + decoding;
    for (Py_ssize_t row = 0; row < rows; row++) {
        long long began = now_ns();
        int code = crop->fd < 0 ? OK : read_row(crop, row * nx);
        crop->read_ns += now_ns() - began;
        if (!code) code = row_of_chunks(crop, row * nx, row / axes[1].count, row % axes[1].count);
        if (code) return code;
    }
    crop->failed = rows * nx;
    return OK;
}

/* Chunks in memory: the buffers of a list, one per chunk, empty or None where absent. */
static int hold(PyObject *list, Crop *crop, int64_t *sizes, Py_buffer *views, Py_ssize_t *held) {
    for (; *held < PyList_GET_SIZE(list); ++*held) {
        Py_buffer *view = &views[*held];
        if (PyObject_GetBuffer(PyList_GET_ITEM(list, *held), view, PyBUF_SIMPLE)) return 0;
        crop->stored[*held] = view->buf;
        sizes[*held] = view->len;
    }
    crop->sizes = sizes;
    return 1;
}

static int fits(const Crop *crop, const Py_buffer *out, const int *size) {
    static const int itemsizes[] = {0, 4, 2};
    const Cast *cast = &crop->cast;
    if (cast->mode < COPY || cast->mode > BFLOAT16 || out->ndim != 3) return 0;
    if (cast->size != 1 && cast->size != 2 && cast->size != 4) return 0;
    if (out->itemsize != (cast->mode == COPY ? cast->size : itemsizes[cast->mode])) return 0;
    for (int i = 0; i < 3; i++)
        if (out->shape[i] != size[i] || size[i] < 1 || crop->axes[i].chunk < 1) return 0;
    return 1;
}

/* What a stored 0 becomes. */
static void set_empty(Crop *crop) {
    const Cast *cast = &crop->cast;
    float value = changed(cast, 0, cast->clip);
    uint16_t half = to_bfloat16(value);
    memset(crop->empty, 0, sizeof crop->empty);
    if (cast->mode == FLOAT32) memcpy(crop->empty, &value, sizeof value);
    if (cast->mode == BFLOAT16) memcpy(crop->empty, &half, sizeof half);
}

/* Offsets and sizes of the box's n chunks: as given, one of each per chunk, or looked up in the
   sizes of all chunks of the shard where `offsets` is None. */
static int find_chunks(Crop *crop, PyObject *offsets, PyObject *sizes, Py_ssize_t first,
                       const int *shape, Py_ssize_t n, Py_buffer *views, int64_t *own_sizes,
                       uint64_t *own_offsets) {
    if (PyObject_GetBuffer(sizes, &views[0], PyBUF_C_CONTIGUOUS)) return 0;
    crop->offsets = own_offsets, crop->sizes = own_sizes;
    if (offsets != Py_None) {
        if (PyObject_GetBuffer(offsets, &views[1], PyBUF_C_CONTIGUOUS)) return 0;
        crop->offsets = views[1].buf, crop->sizes = views[0].buf;
        if (views[0].len == n * 8 && views[1].len == n * 8) return 1;
        PyErr_SetString(PyExc_ValueError, "not one offset and size for each chunk of the box");
        return 0;
    }
    if (!n) return 1;
    size_t size = views[0].itemsize, count = views[0].len / size;
    int found = 0;
    if (size == 2 && first >= 0)
        found = look_up_uint16_t(crop, views[0].buf, count, first, shape, own_offsets, own_sizes);
    if (size == 4 && first >= 0)
        found = look_up_uint32_t(crop, views[0].buf, count, first, shape, own_offsets, own_sizes);
    if (!found) PyErr_SetString(PyExc_ValueError, "the sizes are not those of the shard's chunks");
    return found;
}

/* read_crop(fd or list, offsets, sizes, first, shape, chunk, start, out, kind, itemsize, mode,
   affine, scratch) -> (chunk, code, detail, ns of reading, bytes read); see chunk_decode.py. */
static PyObject *read_crop(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *source, *offsets, *sizes, *out_object, *affine;
    int shape[3], chunk[3], start[3], size[3];
    Py_ssize_t first;
    const char *kind;
    Crop crop = {.fd = -1, .asked = 0};
    Cast *cast = &crop.cast;
    Py_buffer tables[2] = {{0}, {0}}, out = {0}, scratch = {0}, *views = NULL;
    if (!PyArg_ParseTuple(args, "OOOn(iii)(iii)(iii)OsiiOw*", &source, &offsets, &sizes, &first,
                          &shape[0], &shape[1], &shape[2], &chunk[0], &chunk[1], &chunk[2],
                          &start[0], &start[1], &start[2], &out_object, &kind, &cast->size,
                          &cast->mode, &affine, &scratch))
        return NULL;
    PyObject *result = NULL;
    Py_ssize_t n = 0, held = 0;
    int64_t *own_sizes = NULL;
    uint64_t *own_offsets = NULL;
    int listed = PyList_Check(source), code;
    cast->kind = kind[0];
    if (!PyArg_ParseTuple(affine, "pffff", &cast->clip, &cast->low, &cast->high, &cast->scale,
                          &cast->shift) ||
        PyObject_GetBuffer(out_object, &out, PyBUF_STRIDES | PyBUF_WRITABLE))
        goto done;
    for (int i = 0; i < 3 && out.ndim == 3 && chunk[i] > 0; i++) {
        size[i] = (int)out.shape[i];
        crop.axes[i] = axis_of(shape[i], chunk[i], start[i], size[i]);
    }
    if (!fits(&crop, &out, size)) {
        PyErr_SetString(PyExc_ValueError, "target, dtype and chunks do not fit each other");
        goto done;
    }
    n = (Py_ssize_t)crop.axes[0].count * crop.axes[1].count * crop.axes[2].count;
    set_empty(&crop);
    memcpy(cast->stride, out.strides, sizeof cast->stride);
    cast->out = out.buf;
    crop.scratch = scratch.buf, crop.capacity = scratch.len;
    crop.stored = PyMem_Calloc(n + 1, sizeof *crop.stored);
    own_sizes = PyMem_Calloc(n + 1, sizeof *own_sizes);
    own_offsets = PyMem_Calloc(listed ? 1 : n + 1, sizeof *own_offsets);
    views = PyMem_Calloc(listed ? n + 1 : 1, sizeof *views);
    crop.runs = PyMem_Calloc(crop.axes[2].count + 1, sizeof(Run));
    if (!crop.stored || !own_sizes || !own_offsets || !views || !crop.runs) {
        PyErr_NoMemory();
        goto done;
    }
    if (listed) {
        if (PyList_GET_SIZE(source) != n) {
            PyErr_SetString(PyExc_ValueError, "not one buffer for each chunk of the box");
            goto done;
        }
        if (!hold(source, &crop, own_sizes, views, &held)) goto done;
    } else {
        crop.fd = PyObject_AsFileDescriptor(source);
        if (crop.fd < 0 || !find_chunks(&crop, offsets, sizes, first, shape, n, tables, own_sizes,
                                        own_offsets))
            goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    code = n ? all_rows(&crop) : OK;
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("niLLL", crop.failed, code, crop.detail, crop.read_ns, crop.read_bytes);
done:
    for (Py_ssize_t v = 0; v < held; v++) PyBuffer_Release(&views[v]);
    PyMem_Free(views);
    PyMem_Free(own_offsets);
    PyMem_Free(own_sizes);
    PyMem_Free(crop.stored);
    PyMem_Free(crop.runs);
    for (int i = 0; i < 2; i++)
        if (tables[i].obj) PyBuffer_Release(&tables[i]);
    if (out.obj) PyBuffer_Release(&out);
    PyBuffer_Release(&scratch);
    return result;
}

/* pack(list of stored chunks, chunk bytes, voxel bytes, out (bytes), used, rows (m, 4) int64, number
   of rows, counts (n) int64, layouts (n, 3) int64) -> (code, chunks done, used, rows); see
   stream_pack.py. */
static PyObject *pack_chunks(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *list, *objects[4], *result = NULL;
    Py_ssize_t total, size, used, n_rows, done = 0;
    if (!PyArg_ParseTuple(args, "O!nnOnOnOO", &PyList_Type, &list, &total, &size, &objects[0], &used,
                          &objects[1], &n_rows, &objects[2], &objects[3]))
        return NULL;
    Py_buffer outs[4], *views = NULL;
    Py_ssize_t n = PyList_GET_SIZE(list), held = 0;
    int opened = 0, code = 0;
    uint8_t *shuffled = NULL;
    for (; opened < 4; opened++)
        if (PyObject_GetBuffer(objects[opened], &outs[opened],
                               PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE))
            goto release;
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
    for (; held < n; held++)
        if (PyObject_GetBuffer(PyList_GET_ITEM(list, held), &views[held], PyBUF_SIMPLE))
            goto release;
    Pack pack = {outs[0].buf, used, outs[0].len, outs[1].buf, n_rows, outs[1].len / 32,
                 total, size, shuffled};
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
    for (Py_ssize_t v = 0; v < held; v++) PyBuffer_Release(&views[v]);
    while (opened) PyBuffer_Release(&outs[--opened]);
    PyMem_Free(views);
    PyMem_Free(shuffled);
    return result;
}

/* instructions(most) -> name: of the set in use, after choosing the best or at most this one. */
static PyObject *use_instructions(PyObject *self, PyObject *args) {
    (void)self;
    const char *most = "";
    if (!PyArg_ParseTuple(args, "|s", &most)) return NULL;
    if (PyTuple_GET_SIZE(args) && !choose_instructions(most))
        return PyErr_Format(PyExc_ValueError, "%s is none of plain, avx2, avx512", most);
    return PyUnicode_FromString(instruction_names[instructions]);
}

static PyMethodDef methods[] = {
    {"read_crop", read_crop, METH_VARARGS, "Read and decode the chunks of a box into a crop."},
    {"instructions", use_instructions, METH_VARARGS, "The instruction set in use."},
    {"pack", pack_chunks, METH_VARARGS, "Lay the streams of chunks side by side."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_crops", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__crops(void) {
    crc_prepare();
    lz4_prepare();
    choose_instructions("");
    return PyModule_Create(&module);
}
