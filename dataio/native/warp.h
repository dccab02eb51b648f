/* One augmented view of a crop: box stretched, turned, blurred, gain and bias; as views.py has it.

   Positions are double, voxels float32, each operation rounded on its own. Loops along x are written
   so that a compiler makes vectors of them; they are compiled for each instruction set. */

#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "instructions.h"

typedef struct {
    ptrdiff_t size[3]; /* z, y, x */
    int resized, axis; /* axis of the rotation: 0, 1, 2, or -1 for none */
    double start[3], end[3];
    double turn[6]; /* destination to source in the plane's (fast, slow) axes */
    int blurred;
    float taps[3]; /* of the middle, its neighbours, theirs */
    float gain, bias;
    float noise; /* its deviation, 0 for none */
    uint64_t seed;
    const float *quantiles; /* 2^16 of a normal distribution */
} View;

/* Between which two neighbours a position lies, and how far from the first. */
typedef struct {
    int32_t first, second;
    float share;
} Place;

/* The nearest of n; 0 for NaN, which sums of huge numbers may be. */
static inline int32_t within(double index, ptrdiff_t n) {
    if (!(index > 0)) return 0;
    return index < (double)(n - 1) ? (int32_t)index : (int32_t)(n - 1);
}

static inline Place place_of(double position, ptrdiff_t n) {
    double below = floor(position);
    return (Place){within(below, n), within(below + 1, n), (float)(position - below)};
}

/* Where output voxel i of n comes from when start..end is stretched to all of them. */
static inline double stretched(double start, double end, ptrdiff_t i, ptrdiff_t n) {
    return start + ((double)i + 0.5) * (end - start) / (double)n;
}

static inline int mirrored(int i, int n) {
    if (n == 1) return 0;
    int period = 2 * (n - 1), at = i % period;
    if (at < 0) at += period;
    return at < n ? at : period - at;
}

static ALWAYS_INLINE void mix(const float *a, const float *b, float share, float *to, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) to[i] = a[i] + share * (b[i] - a[i]);
}

/* Room of one crop's channel for the places of x and of a plane, and rows and planes under work. */
typedef struct {
    int32_t *first, *second; /* of each voxel of a row */
    float *share;
    float *plane, *row, *padded;
    Place *corner; /* of each voxel of the plane that turns: two places */
} Work;

static size_t largest_plane(const ptrdiff_t *size) {
    size_t z = size[0], y = size[1], x = size[2], plane = y * x > z * x ? y * x : z * x;
    return plane > z * y ? plane : z * y;
}

static size_t work_bytes(const ptrdiff_t *size) {
    size_t plane = largest_plane(size), x = size[2];
    return 2 * plane * sizeof(Place) + (3 * x + plane + x + x + 4) * 4;
}

static Work work_of(void *room, const ptrdiff_t *size) {
    size_t plane = largest_plane(size), x = size[2];
    Work work;
    work.corner = room;
    work.first = (int32_t *)(work.corner + 2 * plane);
    work.second = work.first + x;
    work.share = (float *)(work.second + x);
    work.plane = work.share + x;
    work.row = work.plane + plane;
    work.padded = work.row + x; /* two more on either side */
    return work;
}

static ALWAYS_INLINE void gathered(const Work *work, const float *row, float *to, ptrdiff_t n) {
    for (ptrdiff_t x = 0; x < n; x++) {
        float a = row[work->first[x]], b = row[work->second[x]];
        to[x] = a + work->share[x] * (b - a);
    }
}

/* The box stretched to the crop: between planes, then rows, then voxels of a row. */
static ALWAYS_INLINE void stretch(const View *view, const Work *work, const float *from,
                                  float *to) {
    ptrdiff_t nz = view->size[0], ny = view->size[1], nx = view->size[2];
    double low = fmin(view->start[1], view->end[1]), high = fmax(view->start[1], view->end[1]);
    ptrdiff_t row0 = within(floor(low - 1), ny), row1 = within(ceil(high + 1), ny) + 1;
    for (ptrdiff_t x = 0; x < nx; x++) {
        Place at = place_of(stretched(view->start[2], view->end[2], x, nx) - 0.5, nx);
        work->first[x] = at.first, work->second[x] = at.second, work->share[x] = at.share;
    }
    for (ptrdiff_t z = 0; z < nz; z++) {
        Place at = place_of(stretched(view->start[0], view->end[0], z, nz) - 0.5, nz);
        const float *a = from + at.first * ny * nx, *b = from + at.second * ny * nx;
        ptrdiff_t skip = row0 * nx;
        mix(a + skip, b + skip, at.share, work->plane + skip, (row1 - row0) * nx);
        for (ptrdiff_t y = 0; y < ny; y++) {
            Place in = place_of(stretched(view->start[1], view->end[1], y, ny) - 0.5, ny);
            const float *c = work->plane + in.first * nx, *d = work->plane + in.second * nx;
            mix(c, d, in.share, work->row, nx);
            gathered(work, work->row, to + (z * ny + y) * nx, nx);
        }
    }
}

/* Places in the plane across the axis, (slow, fast), one pair for each of its voxels. */
static void find_corners(const View *view, Place *corner) {
    static const int planes[3][2] = {{1, 2}, {0, 2}, {0, 1}};
    const int *plane = planes[view->axis];
    ptrdiff_t slow = view->size[plane[0]], fast = view->size[plane[1]];
    const double *t = view->turn;
    for (ptrdiff_t s = 0; s < slow; s++)
        for (ptrdiff_t f = 0; f < fast; f++, corner += 2) {
            double x = (double)f + 0.5, y = (double)s + 0.5;
            corner[0] = place_of(t[3] * x + t[4] * y + t[5] - 0.5, slow);
            corner[1] = place_of(t[0] * x + t[1] * y + t[2] - 0.5, fast);
        }
}

/* Turned about z or y: each voxel of the plane from its four neighbours. */
static ALWAYS_INLINE void turn_plane(const Place *corner, const float *from, float *to,
                                     ptrdiff_t slow, ptrdiff_t fast, ptrdiff_t stride) {
    for (ptrdiff_t s = 0; s < slow; s++)
        for (ptrdiff_t f = 0; f < fast; f++, corner += 2) {
            const float *a = from + corner[0].first * stride, *b = from + corner[0].second * stride;
            int32_t first = corner[1].first, second = corner[1].second;
            float share = corner[1].share;
            float upper = a[first] + share * (a[second] - a[first]);
            float lower = b[first] + share * (b[second] - b[first]);
            to[s * stride + f] = upper + corner[0].share * (lower - upper);
        }
}

/* Turned about x: rows move as a whole. */
static ALWAYS_INLINE void turn_rows(const Place *corner, const float *from, float *to,
                                    ptrdiff_t slow, ptrdiff_t fast, ptrdiff_t n) {
    for (ptrdiff_t s = 0; s < slow; s++)
        for (ptrdiff_t f = 0; f < fast; f++, corner += 2, to += n) {
            const float *a = from + corner[0].first * fast * n;
            const float *b = from + corner[0].second * fast * n;
            ptrdiff_t first = corner[1].first * n, second = corner[1].second * n;
            float share = corner[1].share, below = corner[0].share;
            for (ptrdiff_t i = 0; i < n; i++) {
                float upper = a[first + i] + share * (a[second + i] - a[first + i]);
                float lower = b[first + i] + share * (b[second + i] - b[first + i]);
                to[i] = upper + below * (lower - upper);
            }
        }
}

static ALWAYS_INLINE void turn(const View *view, const Work *work, const float *from, float *to) {
    ptrdiff_t nz = view->size[0], ny = view->size[1], nx = view->size[2];
    find_corners(view, work->corner);
    if (view->axis == 2) turn_rows(work->corner, from, to, nz, ny, nx);
    for (ptrdiff_t y = 0; y < ny && view->axis == 1; y++)
        turn_plane(work->corner, from + y * nx, to + y * nx, nz, nx, ny * nx);
    for (ptrdiff_t z = 0; z < nz && view->axis == 0; z++)
        turn_plane(work->corner, from + z * ny * nx, to + z * ny * nx, ny, nx, nx);
}

/* Five taps: the middle, then both neighbours, then both of theirs. */
static ALWAYS_INLINE void smooth(const float *const *rows, const float *taps, float *to,
                                 ptrdiff_t n) {
    const float *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3], *e = rows[4];
    float middle = taps[0], near = taps[1], far = taps[2];
    for (ptrdiff_t i = 0; i < n; i++)
        to[i] = middle * c[i] + near * (b[i] + d[i]) + far * (a[i] + e[i]);
}

/* Blurred along z, y and x, borders mirrored about the outermost voxel; gain and bias at once. */
static ALWAYS_INLINE void blur(const View *view, const Work *work, const float *from, float *to) {
    int nz = (int)view->size[0], ny = (int)view->size[1], nx = (int)view->size[2];
    float gain = view->gain, bias = view->bias;
    for (int z = 0; z < nz; z++) {
        const float *planes[5], *rows[5], *shifted[5];
        for (int k = 0; k < 5; k++) planes[k] = from + (ptrdiff_t)mirrored(z + k - 2, nz) * ny * nx;
        smooth(planes, view->taps, work->plane, (ptrdiff_t)ny * nx);
        for (int y = 0; y < ny; y++) {
            float *row = work->padded + 2, *out = to + ((ptrdiff_t)z * ny + y) * nx;
            for (int k = 0; k < 5; k++) {
                rows[k] = work->plane + (ptrdiff_t)mirrored(y + k - 2, ny) * nx;
                shifted[k] = row + k - 2;
            }
            smooth(rows, view->taps, row, nx);
            for (int k = 1; k <= 2; k++)
                row[-k] = row[mirrored(-k, nx)], row[nx - 1 + k] = row[mirrored(nx - 1 + k, nx)];
            smooth(shifted, view->taps, out, nx);
            for (int x = 0; x < nx; x++) out[x] = out[x] * gain + bias;
        }
    }
}

static ALWAYS_INLINE void scale(const View *view, const float *from, float *to) {
    ptrdiff_t n = view->size[0] * view->size[1] * view->size[2];
    for (ptrdiff_t i = 0; i < n; i++) to[i] = from[i] * view->gain + view->bias;
}

/* SplitMix64's finaliser (Steele, Lea, Flood 2014). */
static ALWAYS_INLINE uint64_t mixed(uint64_t v) {
    v = (v ^ v >> 30) * 0xBF58476D1CE4E5B9u;
    v = (v ^ v >> 27) * 0x94D049BB133111EBu;
    return v ^ v >> 31;
}

/* Noise on n voxels: four from each random word. */
static void add_noise(const View *view, float *to, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += 4) {
        uint64_t word = mixed(view->seed + ((uint64_t)i / 4 + 1) * 0x9E3779B97F4A7C15u);
        for (ptrdiff_t k = 0; k < 4 && i + k < n; k++, word >>= 16)
            to[i + k] += view->noise * view->quantiles[word & 0xFFFF];
    }
}

/* One channel; `spare` has room for two more of it. */
static ALWAYS_INLINE void make_view(const View *view, const Work *work, const float *from,
                                    float *spare, float *to) {
    ptrdiff_t n = view->size[0] * view->size[1] * view->size[2];
    if (view->resized) stretch(view, work, from, spare), from = spare;
    if (view->axis >= 0) turn(view, work, from, spare + n), from = spare + n;
    if (view->blurred) blur(view, work, from, to);
    else scale(view, from, to);
}

static void make_view_plain(const View *view, const Work *work, const float *from, float *spare,
                            float *to) {
    make_view(view, work, from, spare, to);
}

#if X86
AVX2_TARGET static void make_view_avx2(const View *view, const Work *work, const float *from,
                                       float *spare, float *to) {
    make_view(view, work, from, spare, to);
}
#endif

/* A label by the nearest voxel: where each voxel of the crop comes from in the stored one. */
static inline void nearest(const View *view, const char *from, char *to, int itemsize) {
    ptrdiff_t nz = view->size[0], ny = view->size[1], nx = view->size[2];
    const double *t = view->turn;
    if (!view->resized && view->axis < 0) {
        memcpy(to, from, nz * ny * nx * itemsize);
        return;
    }
    for (ptrdiff_t z = 0; z < nz; z++)
        for (ptrdiff_t y = 0; y < ny; y++)
            for (ptrdiff_t x = 0; x < nx; x++, to += itemsize) {
                ptrdiff_t at[3] = {z, y, x};
                if (view->axis >= 0) {
                    int slow = view->axis == 0 ? 1 : 0, fast = view->axis == 2 ? 1 : 2;
                    double f = (double)at[fast] + 0.5, s = (double)at[slow] + 0.5;
                    at[fast] = within(floor(t[0] * f + t[1] * s + t[2]), view->size[fast]);
                    at[slow] = within(floor(t[3] * f + t[4] * s + t[5]), view->size[slow]);
                }
                for (int i = 0; i < 3 && view->resized; i++)
                    at[i] =
                        within(floor(stretched(view->start[i], view->end[i], at[i], view->size[i])),
                               view->size[i]);
                memcpy(to, from + ((at[0] * ny + at[1]) * nx + at[2]) * itemsize, itemsize);
            }
}
