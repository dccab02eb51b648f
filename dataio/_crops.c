/* Chunks to a crop in one pass: LZ4, unshuffle, cut, clip, scale, shift, flip and cast.

   blosc frames of lz4 (c-blosc 1 format) are decoded plane by plane; a plane that blosc stored
   uncompressed is read where it lies. Only the voxels of the crop are unshuffled, straight into
   their place as float32 or as they are. The GIL is released; every read and write is bounded by
   the frame's and the crop's sizes, whatever the bytes say. Arithmetic as numpy does it: cast to
   float32, clip, multiply, add, each rounded on its own (compile with -ffp-contract=off). */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FAST __attribute__((target_clones("avx2", "default")))
#else
#define FAST
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))

enum { SLACK = 64, MAX_TYPESIZE = 4 };
enum { OK = 0, BAD_FRAME = 1, BAD_LZ4 = 2, NO_MEMORY = 3, OTHER = 4 };

static uint32_t le32(const uint8_t *p) {
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Add the bytes that extend a length of 15; 0 when the input ends within. */
static int longer(const uint8_t **in, const uint8_t *end, size_t *length) {
    uint8_t byte;
    do {
        if (*in >= end) return 0;
        byte = *(*in)++;
        *length += byte;
    } while (byte == 255);
    return 1;
}

/* Write `n` bytes that repeat the `back` bytes before `to`; up to 31 bytes more are touched. */
static inline void repeat(uint8_t *to, size_t back, size_t n) {
    /* With back < 8: after 8 bytes, the source is this far behind, a multiple of `back`. */
    static const uint8_t behind[8] = {0, 8, 8, 9, 8, 10, 12, 14};
    uint8_t *stop = to + n;
    const uint8_t *from = to - back;
    if (back >= 32) {
        do {
            memcpy(to, from, 32);
            to += 32, from += 32;
        } while (to < stop);
        return;
    }
    if (back >= 16) {
        for (; to < stop; to += 16, from += 16) memcpy(to, from, 16);
        return;
    }
    if (back == 1) {
        memset(to, to[-1], n);
        return;
    }
    if (back < 8) {
        for (int i = 0; i < 8; i++) to[i] = from[i];
        to += 8;
        from = to - behind[back];
    }
    for (; to < stop; to += 8, from += 8) memcpy(to, from, 8);
}

/* The first `need` of the `size` bytes of an LZ4 block of n bytes; `out` has SLACK bytes behind
   `size`. With need == size the block must end exactly there. */
static int lz4(const uint8_t *in, size_t n, uint8_t *out, size_t size, size_t need) {
    const uint8_t *end = in + n;
    size_t at = 0;
    while (in < end && (at < need || need == size)) {
        uint8_t token = *in++;
        size_t literals = token >> 4, match = token & 15;
        /* Most sequences are short: copy more than needed and branch less. */
        if (literals < 15 && end - in >= 18 && at + 64 <= size) {
            memcpy(out + at, in, 16);
            in += literals;
            at += literals;
            size_t back = in[0] | (size_t)in[1] << 8;
            if (match < 15 && back >= 8 && back <= at) {
                uint8_t *to = out + at;
                memcpy(to, to - back, 8);
                memcpy(to + 8, to + 8 - back, 8);
                memcpy(to + 16, to + 16 - back, 2);
                in += 2;
                at += match + 4;
                continue;
            }
        } else {
            if (literals == 15 && !longer(&in, end, &literals)) return BAD_LZ4;
            if (literals > (size_t)(end - in) || literals > size - at) return BAD_LZ4;
            if ((size_t)(end - in) >= literals + 32 && at + literals + 64 <= size)
                for (size_t done = 0; done < literals; done += 32)
                    memcpy(out + at + done, in + done, 32);
            else memcpy(out + at, in, literals);
            in += literals;
            at += literals;
            if (in == end) return at == size ? OK : BAD_LZ4;
        }
        if (end - in < 2) return BAD_LZ4;
        size_t back = in[0] | (size_t)in[1] << 8;
        in += 2;
        if (match == 15 && !longer(&in, end, &match)) return BAD_LZ4;
        match += 4;
        if (back == 0 || back > at || match > size - at) return BAD_LZ4;
        repeat(out + at, back, match);
        at += match;
    }
    return at >= need && need < size ? OK : BAD_LZ4;
}

typedef struct {
    int size, kind; /* bytes per voxel; 'u', 'i' or 'f' */
    int chunk[3];
    int cast; /* write float32 with clip, scale and shift; else bytes as they are */
    int clip;
    float low, high, scale, shift;
    uint8_t *out;
    Py_ssize_t stride[3]; /* bytes */
} Job;

/* Rows of n voxels in one block: byte b of voxel i of row r is planes[b][r * pitch + i]. */
typedef struct {
    const uint8_t *planes[MAX_TYPESIZE];
    Py_ssize_t pitch, rows, n;
    uint8_t *out;
} Rows;

/* Constant n, stride and clip let the compiler unroll and vectorise what it inlines. */
#define CASTER(name, load)                                                                       \
    static ALWAYS_INLINE void name##_rows(const Rows *rows, const Job *job, Py_ssize_t n,        \
                                          Py_ssize_t stride, int clip) {                         \
        float low = job->low, high = job->high, scale = job->scale, shift = job->shift;          \
        for (Py_ssize_t r = 0; r < rows->rows; r++) {                                            \
            Py_ssize_t at = r * rows->pitch;                                                     \
            const uint8_t *restrict a = rows->planes[0] + at, *restrict b = rows->planes[1] + at; \
            const uint8_t *restrict c = rows->planes[2] + at, *restrict d = rows->planes[3] + at; \
            float *restrict out = (float *)(rows->out + r * job->stride[1]);                     \
            (void)b, (void)c, (void)d;                                                           \
            for (Py_ssize_t i = 0; i < n; i++) {                                                 \
                float v = (float)(load);                                                         \
                if (clip) v = v < low ? low : v > high ? high : v;                               \
                v = v * scale;                                                                   \
                out[i * stride] = v + shift;                                                     \
            }                                                                                    \
        }                                                                                        \
    }                                                                                            \
    FAST static void name(const Rows *rows, const Job *job) {                                    \
        Py_ssize_t n = rows->n, stride = job->stride[2] / (Py_ssize_t)sizeof(float);             \
        if (stride == 1 && n == 32 && !job->clip) name##_rows(rows, job, 32, 1, 0);              \
        else if (stride == 1 && n == 16 && !job->clip) name##_rows(rows, job, 16, 1, 0);         \
        else if (stride == 1 && !job->clip) name##_rows(rows, job, n, 1, 0);                     \
        else if (stride == 1) name##_rows(rows, job, n, 1, 1);                                   \
        else if (stride == -1 && n == 32) name##_rows(rows, job, 32, -1, job->clip);             \
        else if (stride == -1) name##_rows(rows, job, n, -1, job->clip);                         \
        else name##_rows(rows, job, n, stride, job->clip);                                       \
    }

static float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
CASTER(cast_u1, a[i])
CASTER(cast_i1, (int8_t)a[i])
CASTER(cast_u2, (uint16_t)(a[i] | b[i] << 8))
CASTER(cast_i2, (int16_t)(uint16_t)(a[i] | b[i] << 8))
CASTER(cast_i4, (int32_t)(a[i] | b[i] << 8 | c[i] << 16 | (uint32_t)d[i] << 24))
CASTER(cast_f4, as_float(a[i] | b[i] << 8 | c[i] << 16 | (uint32_t)d[i] << 24))

static void copy_rows(const Rows *rows, const Job *job) {
    for (Py_ssize_t r = 0; r < rows->rows; r++)
        for (int b = 0; b < job->size; b++) {
            const uint8_t *plane = rows->planes[b] + r * rows->pitch;
            uint8_t *out = rows->out + r * job->stride[1] + b;
            for (Py_ssize_t i = 0; i < rows->n; i++) out[i * job->stride[2]] = plane[i];
        }
}

static void write_rows(const Rows *rows, const Job *job) {
    if (!job->cast) copy_rows(rows, job);
    else if (job->kind == 'f') cast_f4(rows, job);
    else if (job->size == 4) cast_i4(rows, job);
    else if (job->size == 2) (job->kind == 'u' ? cast_u2 : cast_i2)(rows, job);
    else (job->kind == 'u' ? cast_u1 : cast_i1)(rows, job);
}

/* Voxels [first, first + n) of the chunk lie in this block: write those of the box. */
static void write_block(const Job *job, const int32_t *box, const uint8_t *const *planes,
                        Py_ssize_t first, Py_ssize_t n) {
    Py_ssize_t cy = job->chunk[1], cx = job->chunk[2];
    for (Py_ssize_t z = box[0]; z < box[0] + box[3]; z++) {
        for (Py_ssize_t y = box[1]; y < box[1] + box[4];) {
            Py_ssize_t row = (z * cy + y) * cx + box[2], begin = row, end = row + box[5];
            if (begin < first) begin = first;
            if (end > first + n) end = first + n;
            Rows rows = {.pitch = cx, .rows = 1, .n = end - begin};
            if (rows.n == box[5]) { /* a whole row: take all whole rows of this plane at once */
                Py_ssize_t fit = (first + n - end) / cx + 1, left = box[1] + box[4] - y;
                rows.rows = fit < left ? fit : left;
            }
            if (rows.n > 0) {
                for (int b = 0; b < MAX_TYPESIZE; b++)
                    rows.planes[b] = planes[b < job->size ? b : 0] + (begin - first);
                rows.out = job->out + (box[6] + z - box[0]) * job->stride[0] +
                           (box[7] + y - box[1]) * job->stride[1] +
                           (box[8] + begin - row) * job->stride[2];
                write_rows(&rows, job);
            }
            y += rows.rows;
        }
    }
}

/* One chunk's frame: blocks outside the box are not decoded. */
static int chunk(const Job *job, const uint8_t *frame, size_t n, const int32_t *box,
                 uint8_t *scratch) {
    size_t voxels = (size_t)job->chunk[0] * job->chunk[1] * job->chunk[2];
    size_t total = voxels * job->size, size = job->size;
    if (n < 16 || le32(frame + 4) != total || frame[3] != size) return BAD_FRAME;
    uint8_t flags = frame[2];
    size_t block = le32(frame + 8);
    int shuffled = (flags & 1) && size > 1, stored = flags & 2;
    if (!stored && (flags >> 5 != 1 || (!shuffled && size > 1 && !(flags & 16)))) return OTHER;
    if ((flags & 4) || block == 0 || block % size) return BAD_FRAME;
    size_t first_needed = (size_t)box[0] * job->chunk[1] * job->chunk[2] * size;
    size_t last_needed = (size_t)(box[0] + box[3]) * job->chunk[1] * job->chunk[2] * size;
    if (stored ? n < 16 + total : n < 16 + 4 * ((total + block - 1) / block)) return BAD_FRAME;
    for (size_t begin = 0, i = 0; begin < total; begin += block, i++) {
        size_t length = total - begin < block ? total - begin : block, count = length / size;
        if (begin + length <= first_needed || begin >= last_needed) continue;
        const uint8_t *planes[MAX_TYPESIZE] = {scratch, scratch, scratch, scratch};
        if (stored || !shuffled) {
            const uint8_t *plain = frame + 16 + begin;
            if (!stored) {
                size_t at = le32(frame + 16 + 4 * i);
                if (at > n - 4) return BAD_FRAME;
                size_t bytes = le32(frame + at);
                if (bytes > n - at - 4) return BAD_FRAME;
                plain = frame + at + 4;
                if (bytes != length) {
                    if (lz4(plain, bytes, scratch, length, length)) return BAD_LZ4;
                    plain = scratch;
                }
            }
            if (size == 1) planes[0] = plain;
            else { /* interleaved bytes: part them, as if shuffled */
                uint8_t *parted = scratch + block + SLACK;
                for (size_t b = 0; b < size; b++) {
                    planes[b] = parted + b * count;
                    for (size_t v = 0; v < count; v++) parted[b * count + v] = plain[v * size + b];
                }
            }
        } else {
            size_t at = le32(frame + 16 + 4 * i);
            int split = !(flags & 16) && length == block && block / size >= 128;
            size_t voxels_needed = (last_needed - begin) / size < count
                                       ? (last_needed - begin) / size : count;
            size_t streams = split ? size : 1, part = length / streams;
            uint8_t *to = scratch;
            for (size_t s = 0; s < streams; s++) {
                if (at > n - 4) return BAD_FRAME;
                size_t bytes = le32(frame + at);
                if (bytes > n - at - 4) return BAD_FRAME;
                const uint8_t *data = frame + at + 4;
                if (bytes != part) {
                    if (lz4(data, bytes, to, part, split ? voxels_needed : part)) return BAD_LZ4;
                    data = to;
                    to += part + SLACK;
                }
                if (split) planes[s] = data;
                else
                    for (size_t b = 0; b < size; b++) planes[b] = data + b * count;
                at += 4 + bytes;
            }
        }
        write_block(job, box, planes, begin / size, count);
    }
    return OK;
}

static int check_boxes(const Job *job, const int32_t *boxes, Py_ssize_t n, const Py_ssize_t *shape) {
    for (Py_ssize_t i = 0; i < n; i++, boxes += 9)
        for (int axis = 0; axis < 3; axis++) {
            int from = boxes[axis], size = boxes[3 + axis], to = boxes[6 + axis];
            if (from < 0 || size < 1 || to < 0 || from + size > job->chunk[axis] ||
                to + size > shape[axis])
                return 0;
        }
    return 1;
}

/* fill_crop(frames, boxes (n, 9) int32, out (z, y, x), chunk, kind, size, affine) -> (i, code) */
static PyObject *fill_crop(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *frames, *boxes_object, *out_object, *affine;
    Job job = {0};
    const char *kind;
    if (!PyArg_ParseTuple(args, "O!OO(iii)siO", &PyList_Type, &frames, &boxes_object, &out_object,
                          &job.chunk[0], &job.chunk[1], &job.chunk[2], &kind, &job.size, &affine))
        return NULL;
    job.kind = kind[0];
    job.cast = affine != Py_None;
    if (job.cast &&
        !PyArg_ParseTuple(affine, "pffff", &job.clip, &job.low, &job.high, &job.scale, &job.shift))
        return NULL;
    Py_buffer boxes, out, *views = NULL;
    if (PyObject_GetBuffer(boxes_object, &boxes, PyBUF_C_CONTIGUOUS)) return NULL;
    if (PyObject_GetBuffer(out_object, &out, PyBUF_STRIDES | PyBUF_WRITABLE)) {
        PyBuffer_Release(&boxes);
        return NULL;
    }
    PyObject *result = NULL;
    Py_ssize_t n = PyList_GET_SIZE(frames), held = 0, i = 0;
    uint8_t *scratch = NULL;
    int code = OK;
    job.out = out.buf;
    if (out.ndim != 3 || out.itemsize != (job.cast ? 4 : job.size) || job.size < 1 ||
        job.size == 3 || job.size > MAX_TYPESIZE || boxes.len != n * 9 * 4 ||
        !check_boxes(&job, boxes.buf, n, out.shape)) {
        PyErr_SetString(PyExc_ValueError, "boxes, target and chunks do not fit each other");
        goto done;
    }
    memcpy(job.stride, out.strides, sizeof job.stride);
    views = PyMem_Calloc(n ? n : 1, sizeof *views);
    if (!views) { PyErr_NoMemory(); goto done; }
    for (; held < n; held++)
        if (PyObject_GetBuffer(PyList_GET_ITEM(frames, held), &views[held], PyBUF_SIMPLE)) goto done;
    Py_BEGIN_ALLOW_THREADS
    size_t total = (size_t)job.chunk[0] * job.chunk[1] * job.chunk[2] * job.size;
    scratch = PyMem_RawMalloc(2 * total + 8 * SLACK);
    if (!scratch) code = NO_MEMORY;
    for (i = 0; !code && i < n; i++) {
        const uint8_t *frame = views[i].buf;
        /* A block longer than the chunk would overrun the scratch; blosc never writes one. */
        if (views[i].len >= 16 && le32(frame + 8) > total) code = BAD_FRAME;
        else code = chunk(&job, frame, views[i].len, (const int32_t *)boxes.buf + 9 * i, scratch);
        if (code) break;
    }
    PyMem_RawFree(scratch);
    Py_END_ALLOW_THREADS
    if (code == NO_MEMORY) PyErr_NoMemory();
    else result = Py_BuildValue("ni", i, code);
done:
    for (Py_ssize_t v = 0; v < held; v++) PyBuffer_Release(&views[v]);
    PyMem_Free(views);
    PyBuffer_Release(&out);
    PyBuffer_Release(&boxes);
    return result;
}

static PyMethodDef methods[] = {
    {"fill_crop", fill_crop, METH_VARARGS, "Decode frames and write their boxes into a crop."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_crops", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__crops(void) { return PyModule_Create(&module); }
