/* Shuffled bytes to voxels: cut, clip, scale, shift, flip and cast, a row of chunks at a time. */

#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FAST __attribute__((target_clones("avx2", "default")))
#else
#define FAST
#endif
#define ALWAYS_INLINE inline __attribute__((always_inline))

enum { MAX_TYPESIZE = 4 };
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
    if (clip) v = v < cast->low ? cast->low : v > cast->high ? cast->high : v;
    v = v * cast->scale;
    return v + cast->shift;
}

/* Eight voxels at a time; what the compiler makes of a loop of bytes is twice as slow. */
enum { LANES = 8 };
typedef uint8_t u8x __attribute__((vector_size(LANES)));
typedef int8_t i8x __attribute__((vector_size(LANES)));
typedef uint16_t u16x __attribute__((vector_size(2 * LANES)));
typedef int16_t i16x __attribute__((vector_size(2 * LANES)));
typedef uint32_t u32x __attribute__((vector_size(4 * LANES)));
typedef int32_t i32x __attribute__((vector_size(4 * LANES)));
typedef float f32x __attribute__((vector_size(4 * LANES)));
#define AS(type, v) __builtin_convertvector(v, type)

static ALWAYS_INLINE u8x lanes_of(const uint8_t *p, int reversed) {
    u8x v;
    memcpy(&v, p, LANES);
    if (!reversed) return v;
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(v, v, 7, 6, 5, 4, 3, 2, 1, 0);
#else
    return __builtin_shuffle(v, (u8x){7, 6, 5, 4, 3, 2, 1, 0});
#endif
}

/* By address: vectors as arguments have an ABI that differs between targets. */
static ALWAYS_INLINE void change_lanes(const Cast *cast, f32x *lanes, int clip) {
    f32x v = *lanes;
    if (clip) {
        i32x below = v < cast->low, above = v > cast->high;
        f32x low = cast->low - (f32x){0}, high = cast->high - (f32x){0};
        v = (f32x)(((i32x)low & below) | ((i32x)high & above) | ((i32x)v & ~(below | above)));
    }
    v = v * cast->scale;
    *lanes = v + cast->shift;
}

static ALWAYS_INLINE void round_lanes(const f32x *lanes, u16x *out) {
    u32x bits = (u32x)*lanes, rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
    u32x is_nan = (u32x)(*lanes != *lanes);
    *out = AS(u16x, (rounded & ~is_nan) | (is_nan & 0x7FC0));
}

/* Constant stride and clip are folded by the compiler. `one` is voxel i of a run, `many` LANES. */
#define WRITER(name, type, one, many)                                                            \
    static ALWAYS_INLINE void name##_run(                                                        \
        const uint8_t *restrict a, const uint8_t *restrict b, const uint8_t *restrict c,         \
        const uint8_t *restrict d, type *restrict to, ptrdiff_t n, ptrdiff_t stride,             \
        const Cast *cast, int clip) {                                                            \
        (void)b, (void)c, (void)d, (void)cast, (void)clip;                                       \
        ptrdiff_t i = 0;                                                                         \
        if (stride == 1 || stride == -1)                                                         \
            for (; i + LANES <= n; i += LANES) {                                                 \
                __typeof__(many) v = (many);                                                     \
                memcpy(stride == 1 ? to + i : to - i - (LANES - 1), &v, sizeof v);               \
            }                                                                                    \
        for (; i < n; i++) to[i * stride] = (one);                                               \
    }                                                                                            \
    static ALWAYS_INLINE void name##_slab(const Slab *slab, const Cast *given, ptrdiff_t stride, \
                                          int clip) {                                            \
        const Cast cast = *given; /* a copy: nothing that is written can change it */            \
        for (ptrdiff_t z = 0; z < slab->nz; z++)                                                 \
            for (ptrdiff_t y = 0; y < slab->ny; y++) {                                           \
                ptrdiff_t at = z * slab->plane + y * slab->row;                                  \
                uint8_t *out = slab->out + z * cast.stride[0] + y * cast.stride[1];              \
                for (const Run *run = slab->runs; run < slab->runs + slab->n_runs; run++) {      \
                    __builtin_prefetch(out + cast.stride[0] + run->to, 1);                       \
                    name##_run(run->planes[0] + at, run->planes[1] + at, run->planes[2] + at,    \
                               run->planes[3] + at, (type *)(out + run->to), run->n, stride,     \
                               &cast, clip);                                                     \
                }                                                                                \
            }                                                                                    \
    }                                                                                            \
    FAST static void name(const Slab *slab, const Cast *cast) {                                  \
        ptrdiff_t stride = cast->stride[2] / (ptrdiff_t)sizeof(type);                            \
        if (stride == 1 && !cast->clip) name##_slab(slab, cast, 1, 0);                           \
        else if (stride == 1) name##_slab(slab, cast, 1, 1);                                     \
        else if (stride == -1 && !cast->clip) name##_slab(slab, cast, -1, 0);                    \
        else if (stride == -1) name##_slab(slab, cast, -1, 1);                                   \
        else name##_slab(slab, cast, stride, cast->clip);                                        \
    }
#define CHANGED(lanes)                                                                           \
    ({                                                                                           \
        f32x changed_ = (lanes);                                                                 \
        change_lanes(cast, &changed_, clip);                                                     \
        changed_;                                                                                \
    })
#define ROUNDED(lanes)                                                                           \
    ({                                                                                           \
        f32x exact_ = (lanes);                                                                   \
        u16x rounded_;                                                                           \
        round_lanes(&exact_, &rounded_);                                                         \
        rounded_;                                                                                \
    })
#define CASTER(name, load, lanes)                                                                \
    WRITER(name##_float32, float, changed(cast, (float)(load), clip), CHANGED(lanes))            \
    WRITER(name##_bfloat16, uint16_t, to_bfloat16(changed(cast, (float)(load), clip)),           \
           ROUNDED(CHANGED(lanes)))

#define BYTE(p) lanes_of(p + i, stride < 0)
#define HALF (AS(u16x, BYTE(a)) | AS(u16x, BYTE(b)) << 8)
#define WORD (AS(u32x, HALF) | AS(u32x, AS(u16x, BYTE(c)) | AS(u16x, BYTE(d)) << 8) << 16)
#define WORD1(type) ((type)(a[i] | b[i] << 8 | c[i] << 16 | (uint32_t)d[i] << 24))
CASTER(u1, a[i], AS(f32x, BYTE(a)))
CASTER(i1, (int8_t)a[i], AS(f32x, (i8x)BYTE(a)))
CASTER(u2, (uint16_t)(a[i] | b[i] << 8), AS(f32x, HALF))
CASTER(i2, (int16_t)(uint16_t)(a[i] | b[i] << 8), AS(f32x, (i16x)HALF))
CASTER(i4, WORD1(int32_t), AS(f32x, (i32x)WORD))
CASTER(f4, as_float(WORD1(uint32_t)), (f32x)WORD)
WRITER(copy_1, uint8_t, a[i], BYTE(a))
WRITER(copy_2, uint16_t, (uint16_t)(a[i] | b[i] << 8), HALF)
WRITER(copy_4, uint32_t, WORD1(uint32_t), WORD)

static void write_slab(const Slab *slab, const Cast *cast) {
#define CAST(name) (cast->mode == FLOAT32 ? name##_float32 : name##_bfloat16)(slab, cast)
    if (cast->mode == COPY)
        (cast->size == 1 ? copy_1 : cast->size == 2 ? copy_2 : copy_4)(slab, cast);
    else if (cast->kind == 'f') CAST(f4);
    else if (cast->size == 4) CAST(i4);
    else if (cast->size == 2 && cast->kind == 'u') CAST(u2);
    else if (cast->size == 2) CAST(i2);
    else if (cast->kind == 'u') CAST(u1);
    else CAST(i1);
#undef CAST
}
