/* A crop from the box of its volume that it lies in, turned and zoomed: each voxel from its eight
   neighbours, a label's from the nearest; as transforms/resampling.py has it.

   Positions are double, in voxels of the box, whole at their centres; voxels float32, each operation
   rounded on its own. A run of voxels along x at a time: first where they come from, then, for every
   channel, their values; so that a compiler makes vectors of both. */

#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "instructions.h"

enum { TOGETHER = 32 };

typedef struct {
    ptrdiff_t box[3], size[3]; /* voxels of the box and of the crop, z y x */
    ptrdiff_t channels;
    double map[12];         /* along axis i: map[4i] z + map[4i+1] y + map[4i+2] x + map[4i+3] */
    double low[3], high[3]; /* from where to where the volume reaches */
} Placing;

/* Where a run of voxels comes from: the first of eight neighbours, steps to the others, shares. */
typedef struct {
    int32_t first[TOGETHER], step_z[TOGETHER], step_y[TOGETHER], step_x[TOGETHER];
    float share_z[TOGETHER], share_y[TOGETHER], share_x[TOGETHER];
    int32_t inside[TOGETHER];
} Neighbours;

static ALWAYS_INLINE double held(double index, double last) {
    index = index > 0 ? index : 0; /* 0 for NaN, which sums of huge numbers may be */
    return index < last ? index : last;
}

/* Of voxels x to x + TOGETHER of a row that begins at `row`; what lies past the row is not used. */
static ALWAYS_INLINE void find(const Placing *how, const double *row, ptrdiff_t x,
                               Neighbours *found) {
    const double *map = how->map;
    const ptrdiff_t ny = how->box[1], nx = how->box[2];
    const double last[3] = {(double)how->box[0] - 1, (double)ny - 1, (double)nx - 1};
    for (int k = 0; k < TOGETHER; k++) {
        double at = (double)(x + k);
        double z = row[0] + map[2] * at, y = row[1] + map[6] * at, u = row[2] + map[10] * at;
        double z0 = floor(z), y0 = floor(y), u0 = floor(u);
        found->share_z[k] = (float)(z - z0);
        found->share_y[k] = (float)(y - y0);
        found->share_x[k] = (float)(u - u0);
        int32_t a = (int32_t)held(z0, last[0]), b = (int32_t)held(z0 + 1, last[0]);
        int32_t c = (int32_t)held(y0, last[1]), d = (int32_t)held(y0 + 1, last[1]);
        int32_t e = (int32_t)held(u0, last[2]), f = (int32_t)held(u0 + 1, last[2]);
        found->first[k] = (a * (int32_t)ny + c) * (int32_t)nx + e;
        found->step_z[k] = (b - a) * (int32_t)ny * (int32_t)nx;
        found->step_y[k] = (d - c) * (int32_t)nx;
        found->step_x[k] = f - e;
        found->inside[k] = (z >= how->low[0]) & (z < how->high[0]) & (y >= how->low[1]) &
                           (y < how->high[1]) & (u >= how->low[2]) & (u < how->high[2]);
    }
}

/* Values of a run, from the box's channel. */
static ALWAYS_INLINE void blend(const Neighbours *found, const float *from, float fill, float *to) {
    for (int k = 0; k < TOGETHER; k++) {
        int32_t a = found->first[k], b = a + found->step_y[k];
        int32_t c = a + found->step_z[k], d = b + found->step_z[k], step = found->step_x[k];
        float x = found->share_x[k], y = found->share_y[k];
        float near = from[a] + x * (from[a + step] - from[a]);
        float far = from[b] + x * (from[b + step] - from[b]);
        float above = near + y * (far - near);
        near = from[c] + x * (from[c + step] - from[c]);
        far = from[d] + x * (from[d + step] - from[d]);
        float below = near + y * (far - near);
        float value = above + found->share_z[k] * (below - above);
        to[k] = found->inside[k] ? value : fill;
    }
}

/* Where the row of voxels (z, y) of the crop begins. */
static ALWAYS_INLINE void begin_row(const Placing *how, ptrdiff_t z, ptrdiff_t y, double *row) {
    for (int i = 0; i < 3; i++)
        row[i] =
            how->map[4 * i] * (double)z + how->map[4 * i + 1] * (double)y + how->map[4 * i + 3];
}

static ALWAYS_INLINE void linear(const Placing *how, const float *from, const float *fill,
                                 float *to) {
    const ptrdiff_t *size = how->size, n = size[0] * size[1] * size[2];
    const ptrdiff_t box = how->box[0] * how->box[1] * how->box[2];
    Neighbours found;
    float run[TOGETHER];
    double row[3];
    for (ptrdiff_t z = 0; z < size[0]; z++)
        for (ptrdiff_t y = 0; y < size[1]; y++) {
            begin_row(how, z, y, row);
            for (ptrdiff_t x = 0; x < size[2]; x += TOGETHER) {
                ptrdiff_t left = size[2] - x < TOGETHER ? size[2] - x : TOGETHER;
                float *out = to + (z * size[1] + y) * size[2] + x;
                find(how, row, x, &found);
                for (ptrdiff_t c = 0; c < how->channels; c++) {
                    blend(&found, from + c * box, fill[c], run);
                    memcpy(out + c * n, run, left * sizeof(float));
                }
            }
        }
}

static void linear_plain(const Placing *how, const float *from, const float *fill, float *to) {
    linear(how, from, fill, to);
}

#if X86
AVX2_TARGET static void linear_avx2(const Placing *how, const float *from, const float *fill,
                                    float *to) {
    linear(how, from, fill, to);
}
#endif

/* A label by the nearest voxel; 0 outside the volume. */
static inline void nearest_of(const Placing *how, const char *from, char *to, int itemsize) {
    const ptrdiff_t *size = how->size, *box = how->box;
    double row[3];
    for (ptrdiff_t z = 0; z < size[0]; z++)
        for (ptrdiff_t y = 0; y < size[1]; y++) {
            begin_row(how, z, y, row);
            for (ptrdiff_t x = 0; x < size[2]; x++, to += itemsize) {
                ptrdiff_t at[3];
                int inside = 1;
                for (int i = 0; i < 3; i++) {
                    double place = row[i] + how->map[4 * i + 2] * (double)x;
                    inside &= place >= how->low[i] && place < how->high[i];
                    at[i] = (ptrdiff_t)held(floor(place + 0.5), (double)box[i] - 1);
                }
                if (!inside) memset(to, 0, itemsize);
                else
                    memcpy(to, from + ((at[0] * box[1] + at[1]) * box[2] + at[2]) * itemsize,
                           itemsize);
            }
        }
}
