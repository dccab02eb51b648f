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

/* Where a run of voxels comes from: the first of eight neighbours, steps to the others along each
   axis, shares between them, and how many axes have it inside the volume. */
typedef struct {
    int32_t first[TOGETHER], step[3][TOGETHER], inside[TOGETHER];
    float share[3][TOGETHER];
} Neighbours;

static ALWAYS_INLINE double held(double index, double last) {
    index = index > 0 ? index : 0; /* 0 for NaN, which sums of huge numbers may be */
    return index < last ? index : last;
}

/* As floor() has it, within what a volume may reach; compilers make vectors of this. */
static ALWAYS_INLINE double floored(double place) {
    place = place > -1e9 ? place : -1e9;
    place = place < 1e9 ? place : 1e9;
    double whole = (double)(int32_t)place;
    return whole > place ? whole - 1 : whole;
}

/* Along one axis, whose neighbours lie `stride` voxels apart: voxels x to x + TOGETHER of a row whose
   first lies at `row`. What lies past the crop's row is not used. */
static ALWAYS_INLINE void find_along(const Placing *how, int axis, double row, ptrdiff_t x,
                                     int32_t stride, int32_t *restrict first,
                                     int32_t *restrict step, float *restrict share,
                                     int32_t *restrict inside) {
    const double by_x = how->map[4 * axis + 2], last = (double)how->box[axis] - 1;
    const double low = how->low[axis], high = how->high[axis], begin = (double)x;
    double place[TOGETHER], below[TOGETHER];
    int32_t near[TOGETHER];
    for (int k = 0; k < TOGETHER; k++) place[k] = row + by_x * (begin + (double)k);
    for (int k = 0; k < TOGETHER; k++) below[k] = floored(place[k]);
    for (int k = 0; k < TOGETHER; k++) share[k] = (float)(place[k] - below[k]);
    for (int k = 0; k < TOGETHER; k++) near[k] = (int32_t)held(below[k], last);
    for (int k = 0; k < TOGETHER; k++) step[k] = (int32_t)held(below[k] + 1, last);
    for (int k = 0; k < TOGETHER; k++) step[k] = (step[k] - near[k]) * stride;
    for (int k = 0; k < TOGETHER; k++) first[k] += near[k] * stride;
    for (int k = 0; k < TOGETHER; k++) inside[k] += (place[k] >= low) & (place[k] < high);
}

static ALWAYS_INLINE void find(const Placing *how, const double *row, ptrdiff_t x,
                               Neighbours *found) {
    const int32_t ny = (int32_t)how->box[1], nx = (int32_t)how->box[2];
    const int32_t stride[3] = {ny * nx, nx, 1};
    memset(found->first, 0, sizeof found->first);
    memset(found->inside, 0, sizeof found->inside);
    for (int i = 0; i < 3; i++)
        find_along(how, i, row[i], x, stride[i], found->first, found->step[i], found->share[i],
                   found->inside);
}

/* Between two neighbours each, `step` voxels apart. */
static ALWAYS_INLINE void between(const float *restrict from, const int32_t *restrict first,
                                  const int32_t *restrict step, const float *restrict share,
                                  float *restrict to) {
    for (int k = 0; k < TOGETHER; k++) {
        float a = from[first[k]], b = from[first[k] + step[k]];
        to[k] = a + share[k] * (b - a);
    }
}

static ALWAYS_INLINE void mix_runs(const float *restrict a, const float *restrict b,
                                   const float *restrict share, float *restrict to) {
    for (int k = 0; k < TOGETHER; k++) to[k] = a[k] + share[k] * (b[k] - a[k]);
}

/* Values of a run, from the box's channel. */
static ALWAYS_INLINE void blend(const Neighbours *found, const float *from, float fill, float *to) {
    float rows[4][TOGETHER], planes[2][TOGETHER];
    int32_t at[TOGETHER];
    for (int corner = 0; corner < 4; corner++) {
        for (int k = 0; k < TOGETHER; k++)
            at[k] = found->first[k] + (corner & 2 ? found->step[0][k] : 0) +
                    (corner & 1 ? found->step[1][k] : 0);
        between(from, at, found->step[2], found->share[2], rows[corner]);
    }
    mix_runs(rows[0], rows[1], found->share[1], planes[0]);
    mix_runs(rows[2], rows[3], found->share[1], planes[1]);
    mix_runs(planes[0], planes[1], found->share[0], to);
    for (int k = 0; k < TOGETHER; k++) to[k] = found->inside[k] == 3 ? to[k] : fill;
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
                    at[i] = (ptrdiff_t)held(floored(place + 0.5), (double)box[i] - 1);
                }
                if (!inside) memset(to, 0, itemsize);
                else
                    memcpy(to, from + ((at[0] * box[1] + at[1]) * box[2] + at[2]) * itemsize,
                           itemsize);
            }
        }
}
