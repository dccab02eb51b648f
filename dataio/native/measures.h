/* What is measured of a volume's voxels: the extremes of its planes, and how often each value is. */

#pragma once
#include "gather.h"

/* The least voxel, and the largest of every plane across z, y and x: a macro for the types, as a
   function has its type once. */
#define PROFILER(type)                                                                             \
    FAST static void profile_##type(const Py_buffer *voxels, char *const *out) {                   \
        type *restrict along_z = (type *)out[1], *restrict along_y = (type *)out[2];               \
        type *restrict along_x = (type *)out[3];                                                   \
        const char *from = voxels->buf;                                                            \
        /* Copies: bytes that are written might be these, as far as a compiler knows. */           \
        const Py_ssize_t nz = voxels->shape[0], ny = voxels->shape[1], nx = voxels->shape[2];      \
        const Py_ssize_t step_z = voxels->strides[0], step_y = voxels->strides[1];                 \
        type least = *(const type *)from;                                                          \
        memcpy(along_x, from, nx * sizeof(type));                                                  \
        for (Py_ssize_t z = 0; z < nz; z++) {                                                      \
            for (Py_ssize_t y = 0; y < ny; y++) {                                                  \
                const type *restrict in = (const type *)(from + z * step_z + y * step_y);          \
                type most = in[0], low = in[0];                                                    \
                for (Py_ssize_t x = 0; x < nx; x++) {                                              \
                    type value = in[x], before = along_x[x];                                       \
                    along_x[x] = before > value ? before : value;                                  \
                    most = most > value ? most : value;                                            \
                    low = low < value ? low : value;                                               \
                }                                                                                  \
                if (z == 0 || most > along_y[y]) along_y[y] = most;                                \
                if (y == 0 || most > along_z[z]) along_z[z] = most;                                \
                if (low < least) least = low;                                                      \
            }                                                                                      \
        }                                                                                          \
        *(type *)out[0] = least;                                                                   \
    }

PROFILER(uint8_t)
PROFILER(int8_t)
PROFILER(uint16_t)
PROFILER(int16_t)

enum { LANES = 4 }; /* counts beside each other: equal voxels in a row would wait for one another */

/* Add how often each value from `least` on is among n voxels, `step` bytes apart, to the `room`
   counts of lanes in turn, and any other value to the one behind: a macro for the types. `lanes` is
   (LANES, room + 1). */
#define TALLIER(type)                                                                              \
    static ALWAYS_INLINE void count_##type(const char *at, int32_t least, uint32_t *lane,          \
                                           uint32_t room) {                                        \
        const uint32_t above = (uint32_t)(*(const type *)at - least); /* huge, if it is less */    \
        lane[above < room ? above : room]++;                                                       \
    }                                                                                              \
    static void tally_##type(const char *from, Py_ssize_t n, Py_ssize_t step, int32_t least,       \
                             uint32_t *lanes, uint32_t room) {                                     \
        Py_ssize_t i = 0;                                                                          \
        for (; i + LANES <= n; i += LANES)                                                         \
            for (int k = 0; k < LANES; k++)                                                        \
                count_##type(from + (i + k) * step, least, lanes + k * (room + 1), room);          \
        for (; i < n; i++) count_##type(from + i * step, least, lanes, room);                      \
    }
TALLIER(uint8_t)
TALLIER(int8_t)
TALLIER(uint16_t)
TALLIER(int16_t)
