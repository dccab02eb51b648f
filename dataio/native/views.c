/* Augmented views of a crop, and the label turned with them; transforms/views.py has it in numpy. */

#include "module.h"
#include "resample.h"
#include "warp.h"

static int parse_geometry(PyObject *geometry, View *view) {
    return PyArg_ParseTuple(geometry, "p(ddd)(ddd)i(dddddd)", &view->resized, &view->start[0],
                            &view->start[1], &view->start[2], &view->end[0], &view->end[1],
                            &view->end[2], &view->axis, &view->turn[0], &view->turn[1],
                            &view->turn[2], &view->turn[3], &view->turn[4], &view->turn[5]);
}

/* Sizes of the last three axes; channels are the first of four. 0 where shapes do not fit. */
static Py_ssize_t fitting(View *view, const Py_buffer *from, const Py_buffer *to, int ndim) {
    if (from->ndim != ndim || to->ndim != ndim || from->itemsize != to->itemsize) return 0;
    for (int i = 0; i < ndim; i++)
        if (from->shape[i] != to->shape[i] || from->shape[i] < 1 || from->shape[i] > 1 << 20)
            return 0;
    for (int i = 0; i < 3; i++) view->size[i] = from->shape[ndim - 3 + i];
    if (view->axis < -1 || view->axis > 2) return 0;
    for (int i = 0; i < 3 && view->resized; i++)
        if (!isfinite(view->start[i]) || !isfinite(view->end[i])) return 0;
    for (int i = 0; i < 6; i++)
        if (!isfinite(view->turn[i])) return 0;
    return ndim == 4 ? from->shape[0] : 1;
}

/* view(image (c, z, y, x) float32, geometry, blurred, taps (3), gain, bias, noise, seed, quantiles
   (2^16 float32), out, room) -> None, or the bytes that `room` must have. */
static PyObject *view_crop(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *objects[4], *geometry, *result = NULL;
    View view = {0};
    unsigned long long seed;
    if (!PyArg_ParseTuple(args, "OOp(fff)fffKOOO", &objects[0], &geometry, &view.blurred,
                          &view.taps[0], &view.taps[1], &view.taps[2], &view.gain, &view.bias,
                          &view.noise, &seed, &objects[3], &objects[1], &objects[2]) ||
        !parse_geometry(geometry, &view))
        return NULL;
    Py_buffer held[4];
    int opened = 0;
    const int flags[4] = {PyBUF_C_CONTIGUOUS, WRITE, WRITE, PyBUF_C_CONTIGUOUS};
    if (!hold_buffers(objects, flags, 4, held, &opened)) goto release;
    Py_ssize_t channels = fitting(&view, &held[0], &held[1], 4);
    if (!channels || held[0].itemsize != 4 || held[3].len != 4 << 16) {
        PyErr_SetString(PyExc_ValueError, "image, view and geometry do not fit each other");
        goto release;
    }
    size_t n = view.size[0] * view.size[1] * view.size[2], own = work_bytes(view.size);
    if ((size_t)held[2].len < own + 2 * n * sizeof(float)) {
        result = PyLong_FromSize_t(own + 2 * n * sizeof(float));
        goto release;
    }
    view.seed = seed, view.quantiles = held[3].buf;
    Work work = work_of((char *)held[2].buf + 2 * n * sizeof(float), view.size);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t c = 0; c < channels; c++) {
        const float *from = (const float *)held[0].buf + c * n;
        float *to = (float *)held[1].buf + c * n;
#if X86
        if (instructions >= AVX2) {
            make_view_avx2(&view, &work, from, held[2].buf, to);
            continue;
        }
#endif
        make_view_plain(&view, &work, from, held[2].buf, to);
    }
    if (view.noise != 0) add_noise(&view, held[1].buf, channels * (Py_ssize_t)n);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
release:
    release_buffers(held, opened);
    return result;
}

/* label(label (z, y, x), geometry, out) -> None. */
static PyObject *view_label(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *objects[2], *geometry, *result = NULL;
    View view = {0};
    if (!PyArg_ParseTuple(args, "OOO", &objects[0], &geometry, &objects[1]) ||
        !parse_geometry(geometry, &view))
        return NULL;
    Py_buffer held[2];
    int opened = 0;
    const int flags[2] = {PyBUF_C_CONTIGUOUS, WRITE};
    if (!hold_buffers(objects, flags, 2, held, &opened)) goto release;
    if (!fitting(&view, &held[0], &held[1], 3)) {
        PyErr_SetString(PyExc_ValueError, "label, view and geometry do not fit each other");
        goto release;
    }
    Py_BEGIN_ALLOW_THREADS
    nearest(&view, held[0].buf, held[1].buf, (int)held[0].itemsize);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
release:
    release_buffers(held, opened);
    return result;
}

/* How a crop lies in its box: map (12), from where to where the volume reaches (3 and 3). */
static int parse_placing(PyObject *given, Placing *how) {
    double *map = how->map, *low = how->low, *high = how->high;
    if (!PyArg_ParseTuple(given, "(dddddddddddd)(ddd)(ddd)", &map[0], &map[1], &map[2], &map[3],
                          &map[4], &map[5], &map[6], &map[7], &map[8], &map[9], &map[10], &map[11],
                          &low[0], &low[1], &low[2], &high[0], &high[1], &high[2]))
        return 0;
    for (int i = 0; i < 12; i++)
        if (!isfinite(map[i])) {
            PyErr_SetString(PyExc_ValueError, "where a crop lies is not finite");
            return 0;
        }
    return 1;
}

/* Sizes of box and crop, (c, z, y, x) both; 0 where they do not fit each other. */
static int placed(Placing *how, const Py_buffer *from, const Py_buffer *to) {
    if (from->ndim != 4 || to->ndim != 4 || from->itemsize != to->itemsize) return 0;
    if (from->shape[0] != to->shape[0] || from->shape[0] < 1) return 0;
    how->channels = from->shape[0];
    for (int i = 0; i < 3; i++) {
        how->box[i] = from->shape[i + 1], how->size[i] = to->shape[i + 1];
        if (how->box[i] < 1 || how->size[i] < 1 || how->size[i] > 1 << 20) return 0;
    }
    /* Neighbours are found by 32 bits. */
    return (double)how->box[0] * (double)how->box[1] * (double)how->box[2] < 2147483648.0;
}

/* place(box (c, z, y, x), placing, fill (c float32) or None for labels, out (c, z, y, x)) -> None. */
static PyObject *place_crop(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *objects[3], *placing, *result = NULL;
    Placing how = {0};
    if (!PyArg_ParseTuple(args, "OOOO", &objects[0], &placing, &objects[2], &objects[1]) ||
        !parse_placing(placing, &how))
        return NULL;
    Py_buffer held[3];
    int opened = 0, labels = objects[2] == Py_None;
    const int flags[3] = {PyBUF_C_CONTIGUOUS, WRITE, PyBUF_C_CONTIGUOUS};
    if (!hold_buffers(objects, flags, labels ? 2 : 3, held, &opened)) goto release;
    int fits = placed(&how, &held[0], &held[1]);
    if (fits && labels) fits = how.channels == 1;
    else if (fits) fits = held[0].itemsize == 4 && held[2].len == how.channels * 4;
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "box, crop and fill do not fit each other");
        goto release;
    }
    Py_BEGIN_ALLOW_THREADS
    if (labels) nearest_of(&how, held[0].buf, held[1].buf, (int)held[0].itemsize);
#if X86
    else if (instructions >= AVX2) linear_avx2(&how, held[0].buf, held[2].buf, held[1].buf);
#endif
    else linear_plain(&how, held[0].buf, held[2].buf, held[1].buf);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
release:
    release_buffers(held, opened);
    return result;
}

static PyMethodDef methods[] = {
    {"view", view_crop, METH_VARARGS, "One augmented view of a crop."},
    {"label", view_label, METH_VARARGS, "A label turned as its crop's view."},
    {"place", place_crop, METH_VARARGS, "A crop from the box of its volume that it lies in."},
    {"instructions", use_instructions, METH_VARARGS, "The instruction set in use."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_views", .m_size = -1,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit__views(void) {
    choose_instructions("");
    return PyModule_Create(&module);
}
