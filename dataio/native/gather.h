/* A row of chunks out of a volume of any strides, byte order and address. */

#pragma once
#include "module.h"
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FAST __attribute__((target_clones("avx2", "default")))
#else
#define FAST
#endif

#define ANYWHERE __attribute__((aligned(1), may_alias))

typedef uint8_t u1 ANYWHERE;
typedef uint16_t u2 ANYWHERE;
typedef uint32_t u4 ANYWHERE;
typedef uint64_t u8 ANYWHERE;

/* Along an axis: how many steps, and the bytes of one in the source and in the chunks. */
typedef struct {
    Py_ssize_t n, from, to;
} Steps;

enum { AHEAD = 8, RUN = 3, TILE_BYTES = 16 }; /* rows; which of the axes is taken in one run */

static ALWAYS_INLINE u1 swapped_u1(u1 value) { return value; }
static ALWAYS_INLINE u2 swapped_u2(u2 value) { return __builtin_bswap16(value); }
static ALWAYS_INLINE u4 swapped_u4(u4 value) { return __builtin_bswap32(value); }
static ALWAYS_INLINE u8 swapped_u8(u8 value) { return __builtin_bswap64(value); }

/* A run of voxels of one type: a macro, as a function has its type once. Steps that are constant
   where this is inlined let the compiler vectorise it. */
#define COPIER(type)                                                                               \
    static ALWAYS_INLINE void run_##type(const char *from, char *to, Py_ssize_t n, Py_ssize_t in,  \
                                         Py_ssize_t out, int swap) {                               \
        for (Py_ssize_t i = 0; i < n; i++) {                                                       \
            type value = *(const type *)(from + i * in);                                           \
            *(type *)(to + i * out) = swap ? swapped_##type(value) : value;                        \
        }                                                                                          \
    }
COPIER(u1)
COPIER(u2)
COPIER(u4)
COPIER(u8)

static ALWAYS_INLINE void run(const Py_ssize_t size, const char *from, char *to, Py_ssize_t n,
                              Py_ssize_t in, Py_ssize_t out, int swap) {
    if (size == 1) run_u1(from, to, n, in, out, swap);
    else if (size == 2) run_u2(from, to, n, in, out, swap);
    else if (size == 4) run_u4(from, to, n, in, out, swap);
    else run_u8(from, to, n, in, out, swap);
}

/* Rows of `n` voxels that lie in memory, forward or backward, into rows. */
static ALWAYS_INLINE void copy_rows_of(const Py_ssize_t size, const char *from, char *to,
                                       const Steps *steps, const Py_ssize_t n, int swap) {
    const Steps a = steps[0], b = steps[1], c = steps[2];
    const int back = steps[RUN].from < 0;
    for (Py_ssize_t i = 0; i < a.n; i++)
        for (Py_ssize_t j = 0; j < b.n; j++)
            for (Py_ssize_t k = 0; k < c.n; k++) {
                const char *in = from + i * a.from + j * b.from + k * c.from;
                char *out = to + i * a.to + j * b.to + k * c.to;
                __builtin_prefetch(in + AHEAD * c.from);
                if (!back && !swap) memcpy(out, in, n * size);
                else if (!back) run(size, in, out, n, size, size, 1);
                else if (!swap) run(size, in, out, n, -size, size, 0);
                else run(size, in, out, n, -size, size, 1);
            }
}

/* The same; sides that chunks often have are constants, so that a row takes a few instructions. */
static ALWAYS_INLINE void copy_rows(const Py_ssize_t size, const char *from, char *to,
                                    const Steps *steps, int swap) {
    const Py_ssize_t n = steps[RUN].n;
    if (n == 16) copy_rows_of(size, from, to, steps, 16, swap);
    else if (n == 32) copy_rows_of(size, from, to, steps, 32, swap);
    else copy_rows_of(size, from, to, steps, n, swap);
}

#if X86
static ALWAYS_INLINE __m128i low_half(const Py_ssize_t size, __m128i a, __m128i b) {
    return size == 1   ? _mm_unpacklo_epi8(a, b)
           : size == 2 ? _mm_unpacklo_epi16(a, b)
           : size == 4 ? _mm_unpacklo_epi32(a, b)
                       : _mm_unpacklo_epi64(a, b);
}

static ALWAYS_INLINE __m128i high_half(const Py_ssize_t size, __m128i a, __m128i b) {
    return size == 1   ? _mm_unpackhi_epi8(a, b)
           : size == 2 ? _mm_unpackhi_epi16(a, b)
           : size == 4 ? _mm_unpackhi_epi32(a, b)
                       : _mm_unpackhi_epi64(a, b);
}

/* A square of TILE_BYTES a side, transposed: interleaving each row with the one half the rows below
   is a perfect shuffle, and log2(rows) of them exchange row and column. */
static ALWAYS_INLINE void copy_tile(const Py_ssize_t size, const char *from, char *to,
                                    Py_ssize_t in, Py_ssize_t out) {
    const Py_ssize_t n = TILE_BYTES / size;
    __m128i rows[TILE_BYTES], mixed[TILE_BYTES];
#pragma GCC unroll 16
    for (Py_ssize_t i = 0; i < n; i++) rows[i] = _mm_loadu_si128((const void *)(from + i * in));
#pragma GCC unroll 4
    for (Py_ssize_t done = 1; done < n; done *= 2) {
#pragma GCC unroll 8
        for (Py_ssize_t i = 0; i < n / 2; i++) {
            mixed[2 * i] = low_half(size, rows[i], rows[i + n / 2]);
            mixed[2 * i + 1] = high_half(size, rows[i], rows[i + n / 2]);
        }
#pragma GCC unroll 16
        for (Py_ssize_t i = 0; i < n; i++) rows[i] = mixed[i];
    }
#pragma GCC unroll 16
    for (Py_ssize_t i = 0; i < n; i++) _mm_storeu_si128((void *)(to + i * out), rows[i]);
}
#else
static ALWAYS_INLINE void copy_tile(const Py_ssize_t size, const char *from, char *to,
                                    Py_ssize_t in, Py_ssize_t out) {
    const Py_ssize_t n = TILE_BYTES / size;
    for (Py_ssize_t i = 0; i < n; i++) run(size, from + i * size, to + i * out, n, in, size, 0);
}
#endif

/* A plane of which one axis, `along`, lies in memory, and `across` in the chunk. Tiles overlap at
   the end of what is no multiple of their side. */
static ALWAYS_INLINE void copy_across(const Py_ssize_t size, const char *from, char *to,
                                      const Steps *across, const Steps *along) {
    const Py_ssize_t n = TILE_BYTES / size, in = across->from, out = along->to;
    const Py_ssize_t wide = across->n, high = along->n;
    if (wide < n || high < n) {
        for (Py_ssize_t i = 0; i < high; i++)
            run(size, from + i * size, to + i * out, wide, in, size, 0);
        return;
    }
    for (Py_ssize_t i = 0;; i += n) {
        if (i > high - n) i = high - n;
        for (Py_ssize_t k = 0;; k += n) {
            if (k > wide - n) k = wide - n;
            copy_tile(size, from + i * size + k * in, to + i * out + k * size, in, out);
            if (k == wide - n) break;
        }
        if (i == high - n) break;
    }
}

/* Chunk after chunk (steps[0]) and plane after plane (steps[1]) where another axis (steps[2]) than x
   (steps[RUN]) lies in memory; where none does, voxel after voxel. */
static ALWAYS_INLINE void copy_turned(const Py_ssize_t size, const char *from, char *to,
                                      const Steps *steps, int swap) {
    const Steps chunk = steps[0], plane = steps[1], along = steps[2], across = steps[RUN];
    for (Py_ssize_t i = 0; i < chunk.n; i++)
        for (Py_ssize_t j = 0; j < plane.n; j++) {
            const char *in = from + i * chunk.from + j * plane.from;
            char *out = to + i * chunk.to + j * plane.to;
            if (along.from == size) copy_across(size, in, out, &across, &along);
            for (Py_ssize_t k = 0; k < along.n; k++, in += along.from, out += along.to)
                if (along.from != size) run(size, in, out, across.n, across.from, size, swap);
                else if (swap) run(size, out, out, across.n, size, size, 1);
        }
}

#define COPY(type, size)                                                                           \
    FAST static void copy_##type(const char *from, char *to, const Steps *steps, int turned,       \
                                 int swap) {                                                       \
        if (turned) copy_turned(size, from, to, steps, swap);                                      \
        else copy_rows(size, from, to, steps, swap);                                               \
    }
COPY(u1, 1)
COPY(u2, 2)
COPY(u4, 4)
COPY(u8, 8)

/* Copy the `n` chunks from `from` on, of each `size` (z, y, x) voxels. */
static void copy(const Py_buffer *voxels, const Py_buffer *chunks, const char *from, char *to,
                 Py_ssize_t n, const Py_ssize_t *size, int swap) {
    const Py_ssize_t bytes = voxels->itemsize, *in = voxels->strides, *out = chunks->strides;
    const Steps z = {size[0], in[0], out[1]}, y = {size[1], in[1], out[2]};
    const Steps x = {size[2], in[2], bytes}, chunk = {n, chunks->shape[3] * in[2], out[0]};
    const int turned = in[2] != bytes && in[2] != -bytes;
    const int z_along = in[0] == bytes || in[0] == -bytes;
    Steps steps[4] = {z, y, chunk, x};
    if (turned) memcpy(steps, (Steps[4]){chunk, z_along ? y : z, z_along ? z : y, x}, sizeof steps);
    for (int i = 0; i < RUN; i++) /* forward in memory, which the processor foresees */
        if (steps[i].from < 0) {
            from += (steps[i].n - 1) * steps[i].from;
            to += (steps[i].n - 1) * steps[i].to;
            steps[i].from = -steps[i].from;
            steps[i].to = -steps[i].to;
        }
    switch (bytes) {
    case 1: copy_u1(from, to, steps, turned, 0); break;
    case 2: copy_u2(from, to, steps, turned, swap); break;
    case 4: copy_u4(from, to, steps, turned, swap); break;
    case 8: copy_u8(from, to, steps, turned, swap); break;
    }
}
