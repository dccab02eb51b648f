/* Stored chunks to a crop in one call: read, crc32c, LZ4, unshuffle, cut, normalise, flip, cast.

   A row of chunks along x at a time: its bytes are read and decoded while they are in the cache,
   and rows of the crop are written from end to end. Planes that blosc stored uncompressed are read
   where they lie; only the crop's voxels are unshuffled. The GIL is released; every read and write
   is bounded by the frame's and the crop's sizes, whatever the bytes say. Arithmetic as numpy does
   it: cast to float32, clip, multiply, add, each rounded on its own (-ffp-contract=off). */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "module.h"
#include "crop.h"
#include "decoding.h"

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
        found = look_up(crop, views[0].buf, 2, count, first, shape, own_offsets, own_sizes);
    if (size == 4 && first >= 0)
        found = look_up(crop, views[0].buf, 4, count, first, shape, own_offsets, own_sizes);
    if (!found) PyErr_SetString(PyExc_ValueError, "the sizes are not those of the shard's chunks");
    return found;
}

/* Where the chunks lie in memory that holds their shard, each at its own offset. */
static int point_to(Crop *crop, const Py_buffer *memory, Py_ssize_t n) {
    for (Py_ssize_t i = 0; i < n; i++) {
        uint64_t size = (uint64_t)crop->sizes[i], end = (uint64_t)memory->len;
        if (size > end || (size && crop->offsets[i] > end - size)) {
            PyErr_SetString(PyExc_ValueError, "a chunk lies beyond the memory of its shard");
            return 0;
        }
        crop->stored[i] = (const uint8_t *)memory->buf + (size ? crop->offsets[i] : 0);
        crop->read_bytes += (long long)size;
    }
    return 1;
}

/* Where the chunks lie in `n_runs` runs of their shard's bytes, which begin at ascending offsets. */
static int point_into(Crop *crop, const Py_buffer *runs, const uint64_t *begins, Py_ssize_t n_runs,
                      Py_ssize_t n) {
    for (Py_ssize_t i = 0, run = 0; i < n; i++) {
        uint64_t size = (uint64_t)crop->sizes[i], at = crop->offsets[i];
        if (!size) continue;
        while (run + 1 < n_runs && begins[run + 1] <= at) run++;
        uint64_t held = n_runs ? (uint64_t)runs[run].len : 0;
        if (size > held || at < begins[run] || at - begins[run] > held - size) {
            PyErr_SetString(PyExc_ValueError, "a chunk lies in none of the runs");
            return 0;
        }
        crop->stored[i] = (const uint8_t *)runs[run].buf + (at - begins[run]);
        crop->read_bytes += (long long)size;
    }
    return 1;
}

/* read_crop(fd, list, buffer of the shard, or (list of runs, begins), offsets, sizes, first, shape,
   chunk, start, out, kind, itemsize, mode, rescale, scratch) -> (chunk, code, detail, ns of reading, bytes read); see chunks/decode.py. */
static PyObject *read_crop(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *source, *offsets, *sizes, *out_object, *rescale;
    int shape[3], chunk[3], start[3], size[3];
    Py_ssize_t first;
    const char *kind;
    Crop crop = {.fd = -1, .asked = 0};
    Cast *cast = &crop.cast;
    Py_buffer tables[2] = {{0}, {0}}, out = {0}, scratch = {0}, memory = {0}, *views = NULL;
    if (!PyArg_ParseTuple(args, "OOOn(iii)(iii)(iii)OsiiOw*", &source, &offsets, &sizes, &first,
                          &shape[0], &shape[1], &shape[2], &chunk[0], &chunk[1], &chunk[2],
                          &start[0], &start[1], &start[2], &out_object, &kind, &cast->size,
                          &cast->mode, &rescale, &scratch))
        return NULL;
    PyObject *result = NULL;
    Py_ssize_t n = 0, held = 0;
    int64_t *own_sizes = NULL;
    uint64_t *own_offsets = NULL;
    PyObject *begins = NULL, *buffers = source;
    if (PyTuple_Check(source) &&
        !PyArg_ParseTuple(source, "O!O", &PyList_Type, &buffers, &begins)) {
        PyBuffer_Release(&scratch);
        return NULL;
    }
    int listed = PyList_Check(source), code;
    cast->kind = kind[0];
    if (!PyArg_ParseTuple(rescale, "pffff", &cast->clip, &cast->low, &cast->high, &cast->scale,
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
    views = PyMem_Calloc(PyList_Check(buffers) ? PyList_GET_SIZE(buffers) + 1 : 1, sizeof *views);
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
        if (!hold_list(source, views, &held)) goto done;
        for (Py_ssize_t i = 0; i < n; i++)
            crop.stored[i] = views[i].buf, own_sizes[i] = views[i].len;
        crop.sizes = own_sizes;
    } else if (begins) {
        if (!hold_list(buffers, views, &held) ||
            PyObject_GetBuffer(begins, &memory, PyBUF_C_CONTIGUOUS) ||
            !find_chunks(&crop, offsets, sizes, first, shape, n, tables, own_sizes, own_offsets))
            goto done;
        if (memory.len != held * 8) {
            PyErr_SetString(PyExc_ValueError, "not one beginning for each run");
            goto done;
        }
        if (!point_into(&crop, views, memory.buf, held, n)) goto done;
    } else if (PyObject_CheckBuffer(source)) {
        if (PyObject_GetBuffer(source, &memory, PyBUF_SIMPLE) ||
            !find_chunks(&crop, offsets, sizes, first, shape, n, tables, own_sizes, own_offsets) ||
            !point_to(&crop, &memory, n))
            goto done;
    } else {
        crop.fd = PyObject_AsFileDescriptor(source);
        if (crop.fd < 0 ||
            !find_chunks(&crop, offsets, sizes, first, shape, n, tables, own_sizes, own_offsets))
            goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    code = n ? all_rows(&crop) : OK;
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("niLLL", crop.failed, code, crop.detail, crop.read_ns, crop.read_bytes);
done:
    release_buffers(views, held);
    PyMem_Free(views);
    PyMem_Free(own_offsets);
    PyMem_Free(own_sizes);
    PyMem_Free(crop.stored);
    PyMem_Free(crop.runs);
    for (int i = 0; i < 2; i++)
        if (tables[i].obj) PyBuffer_Release(&tables[i]);
    if (memory.obj) PyBuffer_Release(&memory);
    if (out.obj) PyBuffer_Release(&out);
    PyBuffer_Release(&scratch);
    return result;
}

static PyMethodDef methods[] = {
    {"read_crop", read_crop, METH_VARARGS, "Read and decode the chunks of a box into a crop."},
    {"instructions", use_instructions, METH_VARARGS, "The instruction set in use."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_crops", .m_size = -1,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit__crops(void) {
    crc_prepare();
    lz4_prepare();
    choose_instructions("");
    PyObject *made = PyModule_Create(&module);
    /* That read_crop takes runs: modules of earlier sources lack it. */
    if (made && PyModule_AddIntConstant(made, "RUNS", 1)) Py_CLEAR(made);
    return made;
}
