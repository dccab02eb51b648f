/* Four voxels at a time, in vectors as GCC and clang extend C by: for any processor.

   Conversions go by factors of two: compilers take others apart, voxel by voxel. */

#pragma once
#include <stdint.h>

enum { LANES_plain = 4 };
typedef uint8_t Bytes_plain __attribute__((vector_size(4)));
typedef uint16_t Words_plain __attribute__((vector_size(8)));
typedef uint32_t Ints_plain __attribute__((vector_size(16)));
typedef float Floats_plain __attribute__((vector_size(16)));
typedef int8_t Signed1_plain __attribute__((vector_size(4)));
typedef int16_t Signed2_plain __attribute__((vector_size(8)));
typedef int32_t Signed4_plain __attribute__((vector_size(16)));
#define AS(type, v) __builtin_convertvector(v, type)

static ALWAYS_INLINE Bytes_plain bytes_plain(const uint8_t *p, int reversed) {
    Bytes_plain v;
    memcpy(&v, p, sizeof v);
    return reversed ? (Bytes_plain){v[3], v[2], v[1], v[0]} : v;
}

static ALWAYS_INLINE Words_plain words_plain(Bytes_plain low, Bytes_plain high) {
    return AS(Words_plain, low) | AS(Words_plain, high) << 8;
}

static ALWAYS_INLINE Ints_plain u1_plain(Bytes_plain v) {
    return AS(Ints_plain, AS(Words_plain, v));
}

static ALWAYS_INLINE Ints_plain i1_plain(Bytes_plain v) {
    return (Ints_plain)AS(Signed4_plain, AS(Signed2_plain, (Signed1_plain)v));
}

static ALWAYS_INLINE Ints_plain u2_plain(Words_plain v) { return AS(Ints_plain, v); }

static ALWAYS_INLINE Ints_plain i2_plain(Words_plain v) {
    return (Ints_plain)AS(Signed4_plain, (Signed2_plain)v);
}

static ALWAYS_INLINE Ints_plain w4_plain(Words_plain low, Words_plain high) {
    return AS(Ints_plain, low) | AS(Ints_plain, high) << 16;
}

static ALWAYS_INLINE Floats_plain floats_plain(Ints_plain v) {
    return AS(Floats_plain, (Signed4_plain)v);
}

static ALWAYS_INLINE Floats_plain as_floats_plain(Ints_plain v) { return (Floats_plain)v; }

static ALWAYS_INLINE Floats_plain changed_plain(Floats_plain v, const Cast *cast, int clip) {
    if (clip) {
        Floats_plain low = cast->low - (Floats_plain){0}, high = cast->high - (Floats_plain){0};
        Ints_plain below = (Ints_plain)(v < low);
        v = (Floats_plain)(((Ints_plain)low & below) | ((Ints_plain)v & ~below));
        Ints_plain above = (Ints_plain)(v > high);
        v = (Floats_plain)(((Ints_plain)high & above) | ((Ints_plain)v & ~above));
    }
    v = v * cast->scale;
    return v + cast->shift;
}

static ALWAYS_INLINE void put_1_plain(void *to, Bytes_plain v) { memcpy(to, &v, sizeof v); }
static ALWAYS_INLINE void put_2_plain(void *to, Words_plain v) { memcpy(to, &v, sizeof v); }
static ALWAYS_INLINE void put_4_plain(void *to, Ints_plain v) { memcpy(to, &v, sizeof v); }
static ALWAYS_INLINE void put_float32_plain(void *to, Floats_plain v) { memcpy(to, &v, sizeof v); }

static ALWAYS_INLINE void put_bfloat16_plain(void *to, Floats_plain v) {
    Ints_plain bits = (Ints_plain)v, is_nan = (Ints_plain)(v != v);
    bits = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
    put_2_plain(to, AS(Words_plain, (bits & ~is_nan) | (is_nan & 0x7FC0)));
}
