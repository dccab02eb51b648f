/* Sixteen voxels at a time by AVX2; Intel's intrinsics, as its guide has them. */

#pragma once
#include <stdint.h>

#define LANE_FUNCTION static ALWAYS_INLINE AVX2_TARGET
enum { LANES_avx2 = 16 };
typedef __m128i Bytes_avx2;
typedef struct {
    __m128i first, second;
} Words_avx2;
typedef struct {
    __m256i first, second;
} Ints_avx2;
typedef struct {
    __m256 first, second;
} Floats_avx2;

LANE_FUNCTION Bytes_avx2 bytes_avx2(const uint8_t *p, int reversed) {
    __m128i v = _mm_loadu_si128((const __m128i *)p);
    if (!reversed) return v;
    return _mm_shuffle_epi8(v, _mm_set_epi64x(0x0001020304050607, 0x08090A0B0C0D0E0F));
}

LANE_FUNCTION Words_avx2 words_avx2(Bytes_avx2 low, Bytes_avx2 high) {
    return (Words_avx2){_mm_unpacklo_epi8(low, high), _mm_unpackhi_epi8(low, high)};
}

LANE_FUNCTION Ints_avx2 u1_avx2(Bytes_avx2 v) {
    return (Ints_avx2){_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
}

LANE_FUNCTION Ints_avx2 i1_avx2(Bytes_avx2 v) {
    return (Ints_avx2){_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))};
}

LANE_FUNCTION Ints_avx2 u2_avx2(Words_avx2 v) {
    return (Ints_avx2){_mm256_cvtepu16_epi32(v.first), _mm256_cvtepu16_epi32(v.second)};
}

LANE_FUNCTION Ints_avx2 i2_avx2(Words_avx2 v) {
    return (Ints_avx2){_mm256_cvtepi16_epi32(v.first), _mm256_cvtepi16_epi32(v.second)};
}

LANE_FUNCTION Ints_avx2 w4_avx2(Words_avx2 low, Words_avx2 high) {
    return (Ints_avx2){_mm256_set_m128i(_mm_unpackhi_epi16(low.first, high.first),
                                        _mm_unpacklo_epi16(low.first, high.first)),
                       _mm256_set_m128i(_mm_unpackhi_epi16(low.second, high.second),
                                        _mm_unpacklo_epi16(low.second, high.second))};
}

LANE_FUNCTION Floats_avx2 floats_avx2(Ints_avx2 v) {
    return (Floats_avx2){_mm256_cvtepi32_ps(v.first), _mm256_cvtepi32_ps(v.second)};
}

LANE_FUNCTION Floats_avx2 as_floats_avx2(Ints_avx2 v) {
    return (Floats_avx2){_mm256_castsi256_ps(v.first), _mm256_castsi256_ps(v.second)};
}

LANE_FUNCTION __m256 changed_half_avx2(__m256 v, const Cast *cast, int clip) {
    if (clip) { /* the second operand is what a NaN, or equal zeros, give */
        v = _mm256_max_ps(_mm256_set1_ps(cast->low), v);
        v = _mm256_min_ps(_mm256_set1_ps(cast->high), v);
    }
    v = _mm256_mul_ps(v, _mm256_set1_ps(cast->scale));
    return _mm256_add_ps(v, _mm256_set1_ps(cast->shift));
}

LANE_FUNCTION Floats_avx2 changed_avx2(Floats_avx2 v, const Cast *cast, int clip) {
    return (Floats_avx2){changed_half_avx2(v.first, cast, clip),
                         changed_half_avx2(v.second, cast, clip)};
}

LANE_FUNCTION void put_1_avx2(void *to, Bytes_avx2 v) { _mm_storeu_si128(to, v); }

LANE_FUNCTION void put_2_avx2(void *to, Words_avx2 v) {
    _mm256_storeu_si256(to, _mm256_set_m128i(v.second, v.first));
}

LANE_FUNCTION void put_4_avx2(void *to, Ints_avx2 v) {
    _mm256_storeu_si256(to, v.first);
    _mm256_storeu_si256((__m256i *)to + 1, v.second);
}

LANE_FUNCTION void put_float32_avx2(void *to, Floats_avx2 v) {
    _mm256_storeu_ps(to, v.first);
    _mm256_storeu_ps((float *)to + 8, v.second);
}

/* The upper halves, rounded to the nearest even. */
LANE_FUNCTION __m256i rounded_avx2(__m256 v) {
    __m256i bits = _mm256_castps_si256(v), half = _mm256_srli_epi32(bits, 16);
    half = _mm256_and_si256(half, _mm256_set1_epi32(1));
    half = _mm256_add_epi32(half, _mm256_set1_epi32(0x7FFF));
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    bits = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
    return _mm256_blendv_epi8(bits, _mm256_set1_epi32(0x7FC0), is_nan);
}

LANE_FUNCTION void put_bfloat16_avx2(void *to, Floats_avx2 v) {
    __m256i mixed = _mm256_packus_epi32(rounded_avx2(v.first), rounded_avx2(v.second));
    _mm256_storeu_si256(to, _mm256_permute4x64_epi64(mixed, 0xD8));
}
#undef LANE_FUNCTION
