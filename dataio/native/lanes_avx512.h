/* Sixteen voxels at a time by AVX-512: float32 of a row of 16 is one cache line, in one store. */

#pragma once
#include <stdint.h>
#include "lanes_avx2.h"

#define LANE_FUNCTION static ALWAYS_INLINE AVX512_TARGET
enum { LANES_avx512 = 16 };
typedef Bytes_avx2 Bytes_avx512;
typedef __m256i Words_avx512;
typedef __m512i Ints_avx512;
typedef __m512 Floats_avx512;

/* Sixteen bytes are one vector of AVX2's as well. */
#define bytes_avx512 bytes_avx2
#define put_1_avx512 put_1_avx2

LANE_FUNCTION Words_avx512 words_avx512(Bytes_avx512 low, Bytes_avx512 high) {
    return _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high));
}

LANE_FUNCTION Ints_avx512 u1_avx512(Bytes_avx512 v) { return _mm512_cvtepu8_epi32(v); }
LANE_FUNCTION Ints_avx512 i1_avx512(Bytes_avx512 v) { return _mm512_cvtepi8_epi32(v); }
LANE_FUNCTION Ints_avx512 u2_avx512(Words_avx512 v) { return _mm512_cvtepu16_epi32(v); }
LANE_FUNCTION Ints_avx512 i2_avx512(Words_avx512 v) { return _mm512_cvtepi16_epi32(v); }

LANE_FUNCTION Ints_avx512 w4_avx512(Words_avx512 low, Words_avx512 high) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

LANE_FUNCTION Floats_avx512 floats_avx512(Ints_avx512 v) { return _mm512_cvtepi32_ps(v); }
LANE_FUNCTION Floats_avx512 as_floats_avx512(Ints_avx512 v) { return _mm512_castsi512_ps(v); }

LANE_FUNCTION Floats_avx512 changed_avx512(Floats_avx512 v, const Cast *cast, int clip) {
    if (clip) { /* the second operand is what a NaN, or equal zeros, give */
        v = _mm512_max_ps(_mm512_set1_ps(cast->low), v);
        v = _mm512_min_ps(_mm512_set1_ps(cast->high), v);
    }
    v = _mm512_mul_ps(v, _mm512_set1_ps(cast->scale));
    return _mm512_add_ps(v, _mm512_set1_ps(cast->shift));
}

LANE_FUNCTION void put_2_avx512(void *to, Words_avx512 v) { _mm256_storeu_si256(to, v); }
LANE_FUNCTION void put_4_avx512(void *to, Ints_avx512 v) { _mm512_storeu_si512(to, v); }
LANE_FUNCTION void put_float32_avx512(void *to, Floats_avx512 v) { _mm512_storeu_ps(to, v); }

LANE_FUNCTION void put_bfloat16_avx512(void *to, Floats_avx512 v) {
    __m512i bits = _mm512_castps_si512(v), half = _mm512_srli_epi32(bits, 16);
    half = _mm512_and_si512(half, _mm512_set1_epi32(1));
    half = _mm512_add_epi32(half, _mm512_set1_epi32(0x7FFF));
    __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    bits = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
    bits = _mm512_mask_mov_epi32(bits, is_nan, _mm512_set1_epi32(0x7FC0));
    _mm256_storeu_si256(to, _mm512_cvtepi32_epi16(bits));
}
#undef LANE_FUNCTION
