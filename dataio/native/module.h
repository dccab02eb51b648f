/* What the modules share on Python's side. */

#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include "instructions.h"

enum { WRITE = PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE };

/* Buffers of `objects`, each with its flags; 0 with an exception where one has none. `held` are to
   be released either way. */
static inline int hold_buffers(PyObject *const *objects, const int *flags, int n, Py_buffer *views,
                               int *held) {
    for (; *held < n; ++*held)
        if (PyObject_GetBuffer(objects[*held], &views[*held], flags[*held])) return 0;
    return 1;
}

/* The bytes of each buffer of a list from `held` on. */
static inline int hold_list(PyObject *list, Py_buffer *views, Py_ssize_t *held) {
    for (; *held < PyList_GET_SIZE(list); ++*held)
        if (PyObject_GetBuffer(PyList_GET_ITEM(list, *held), &views[*held], PyBUF_SIMPLE)) return 0;
    return 1;
}

static inline void release_buffers(Py_buffer *views, Py_ssize_t n) {
    for (Py_ssize_t i = 0; i < n; i++) PyBuffer_Release(&views[i]);
}

/* instructions(most) -> name: of the set in use, after choosing the best or at most this one. */
static inline PyObject *use_instructions(PyObject *self, PyObject *args) {
    (void)self;
    const char *most = "";
    if (!PyArg_ParseTuple(args, "|s", &most)) return NULL;
    if (PyTuple_GET_SIZE(args) && !choose_instructions(most))
        return PyErr_Format(PyExc_ValueError, "%s is none of plain, avx2, avx512", most);
    return PyUnicode_FromString(instruction_names[instructions]);
}
