/* Shuffled bytes to voxels: cut, clip, scale, shift, flip and cast, a row of chunks at a time.

   What is written is the same whatever the processor's instructions; rows.h writes it. */

#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "instructions.h"
#include "planes.h"

enum { COPY = 0, FLOAT32 = 1, BFLOAT16 = 2 };

/* What becomes of a voxel, and where the crop lies: strides in bytes, negative where flipped. */
typedef struct {
    int size, kind; /* bytes per voxel; 'u', 'i' or 'f' */
    int mode, clip;
    float low, high, scale, shift;
    uint8_t *out;
    ptrdiff_t stride[3];
} Cast;

/* n voxels along x: byte b of voxel i of row (z, y) is planes[b][z * plane + y * row + i]; they
   are written `to` bytes into the crop's row. */
typedef struct {
    const uint8_t *planes[MAX_TYPESIZE];
    ptrdiff_t n, to;
    ptrdiff_t before, behind; /* voxels of the chunk's rows that may be read beside the run */
} Run;

/* Runs side by side, so that rows of the crop are written from end to end. */
typedef struct {
    const Run *runs;
    ptrdiff_t n_runs, nz, ny, plane, row;
    uint8_t *out;
} Slab;

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Round to nearest even; NaN as torch writes it. */
static inline uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0 : (uint16_t)rounded;
}

static inline float changed(const Cast *cast, float v, int clip) {
    if (clip) { /* a NaN stays one */
        v = v < cast->low ? cast->low : v;
        v = v > cast->high ? cast->high : v;
    }
    v = v * cast->scale;
    return v + cast->shift;
}

/* n >= size bytes in two pieces that may overlap, where `most` >= size; 0 where n is less. */
static ALWAYS_INLINE int put_ends(void *to, const void *from, size_t n, size_t size, size_t most) {
    if (size > most || n < size) return 0;
    memcpy(to, from, size);
    memcpy((uint8_t *)to + n - size, (const uint8_t *)from + n - size, size);
    return 1;
}

/* Copy n of at most `most` < 64 bytes. */
static ALWAYS_INLINE void put_some(void *to, const void *from, size_t n, size_t most) {
    (void)(put_ends(to, from, n, 32, most) || put_ends(to, from, n, 16, most) ||
           put_ends(to, from, n, 8, most) || put_ends(to, from, n, 4, most) ||
           put_ends(to, from, n, 2, most) || put_ends(to, from, n, 1, most));
}

#include "lanes_plain.h"
#define SET plain
#define TARGET
#include "rows.h"

#if X86
#include "lanes_avx2.h"
#define SET avx2
#define TARGET AVX2_TARGET
#include "rows.h"

#include "lanes_avx512.h"
#define SET avx512
#define TARGET AVX512_TARGET
#include "rows.h"
#endif

static void write_slab(const Slab *slab, const Cast *cast) {
#if X86
    if (instructions == AVX512) write_slab_avx512(slab, cast);
    else if (instructions == AVX2) write_slab_avx2(slab, cast);
    else
#endif
        write_slab_plain(slab, cast);
}
