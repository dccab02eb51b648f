/* Bit planes to bytes: blosc's bit shuffle undone for one byte of the voxels.

   Row k of eight holds bit k of the byte, of eight voxels in each of its bytes, the first in the
   lowest bit (bitshuffle's layout). The rows' bytes are interleaved, which makes of each eight
   voxels a matrix of 8 x 8 bits, and every matrix is transposed: as transpose.h has it, four at
   once, or by one instruction of AVX-512. */

#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "transpose.h"

enum { WIDE = 32 };
typedef uint8_t wide __attribute__((vector_size(WIDE)));
typedef uint64_t words __attribute__((vector_size(WIDE)));

/* Macros: a shuffle takes its lanes as constants, written out. */
#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (wide){__VA_ARGS__})
#endif
/* Bytes of a and b in turn, of the lower or the upper half of each 16: one instruction. */
#define LOWER(a, b)                                                                                \
    PICK(a, b, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 16, 48, 17, 49, 18, 50, 19, \
         51, 20, 52, 21, 53, 22, 54, 23, 55)
#define UPPER(a, b)                                                                                \
    PICK(a, b, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 24, 56, 25, 57, 26,   \
         58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63)
/* The first 16 bytes of both, and the last. */
#define FIRSTS(a, b)                                                                               \
    PICK(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 32, 33, 34, 35, 36, 37, 38,   \
         39, 40, 41, 42, 43, 44, 45, 46, 47)
#define LASTS(a, b)                                                                                \
    PICK(a, b, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 48, 49, 50, 51, 52, \
         53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63)

/* `exchanged` and `transposed` for four matrices; by address, as a vector by value would change the
   calling convention where AVX is not assumed. */
static ALWAYS_INLINE void exchange_four(words *v, int n, uint64_t mask) {
    words moved = (*v ^ (*v >> n)) & mask;
    *v ^= moved ^ (moved << n);
}

static ALWAYS_INLINE void transpose_four(words *v) {
    exchange_four(v, 7, 0x00AA00AA00AA00AAu);
    exchange_four(v, 14, 0x0000CCCC0000CCCCu);
    exchange_four(v, 28, 0x00000000F0F0F0F0u);
}

/* Interleave eight rows: bytes 2h and 2h + 1 of each 16 of theirs are in v[h]. A macro for its two
   types and their instructions. */
#define INTERLEAVE(type, r, v, LOWER, UPPER)                                                       \
    do {                                                                                           \
        type pairs_[8], fours_[8];                                                                 \
        for (int k = 0; k < 4; k++) { /* rows k and k + 4 */                                       \
            pairs_[2 * k] = LOWER(r[k], r[k + 4]);                                                 \
            pairs_[2 * k + 1] = UPPER(r[k], r[k + 4]);                                             \
        }                                                                                          \
        for (int k = 0; k < 2; k++) /* rows k, k + 2, k + 4, k + 6 */                              \
            for (int h = 0; h < 2; h++) {                                                          \
                fours_[4 * k + 2 * h] = LOWER(pairs_[2 * k + h], pairs_[2 * k + 4 + h]);           \
                fours_[4 * k + 2 * h + 1] = UPPER(pairs_[2 * k + h], pairs_[2 * k + 4 + h]);       \
            }                                                                                      \
        for (int h = 0; h < 8; h += 2) {                                                           \
            v[h] = LOWER(fours_[h >> 1], fours_[4 + (h >> 1)]);                                    \
            v[h + 1] = UPPER(fours_[h >> 1], fours_[4 + (h >> 1)]);                                \
        }                                                                                          \
    } while (0)

/* The first `n` bytes of eight rows, `pitch` bytes apart, to 8 n bytes. */
static ALWAYS_INLINE void join_bits_in_any(const uint8_t *rows, size_t pitch, size_t n,
                                           uint8_t *to) {
    size_t j = 0;
    for (; j + WIDE <= n; j += WIDE) {
        wide r[8], v[8];
        for (int k = 0; k < 8; k++) memcpy(&r[k], rows + k * pitch + j, WIDE);
        INTERLEAVE(wide, r, v, LOWER, UPPER);
        for (int h = 0; h < 8; h += 2) {
            words even = (words)v[h], odd = (words)v[h + 1];
            transpose_four(&even);
            transpose_four(&odd);
            wide first = FIRSTS((wide)even, (wide)odd), last = LASTS((wide)even, (wide)odd);
            memcpy(to + 8 * j + 16 * h, &first, WIDE);
            memcpy(to + 8 * j + 16 * h + 128, &last, WIDE);
        }
    }
    for (; j < n; j++) {
        uint64_t v = 0;
        for (int k = 0; k < 8; k++) v |= (uint64_t)rows[k * pitch + j] << 8 * k;
        v = transposed(v);
        for (int i = 0; i < 8; i++) to[8 * j + i] = (uint8_t)(v >> 8 * i);
    }
}

static void join_bits_plain(const uint8_t *rows, size_t pitch, size_t n, uint8_t *to) {
    join_bits_in_any(rows, pitch, n, to);
}

#if X86
AVX2_TARGET static void join_bits_avx2(const uint8_t *rows, size_t pitch, size_t n, uint8_t *to) {
    join_bits_in_any(rows, pitch, n, to);
}

/* Byte j of the constant, times a matrix, is the matrix' column j, from the last row to the first:
   the rows are taken in that order. */
AVX512_TARGET static void join_bits_avx512(const uint8_t *rows, size_t pitch, size_t n,
                                           uint8_t *to) {
    const __m512i columns = _mm512_set1_epi64((long long)0x8040201008040201u);
    size_t j = 0;
    for (; j + 64 <= n; j += 64) {
        __m512i r[8], v[8];
        for (int k = 0; k < 8; k++) r[k] = _mm512_loadu_si512(rows + (7 - k) * pitch + j);
        INTERLEAVE(__m512i, r, v, _mm512_unpacklo_epi8, _mm512_unpackhi_epi8);
        for (int h = 0; h < 8; h++) v[h] = _mm512_gf2p8affine_epi64_epi8(columns, v[h], 0);
        for (int h = 0; h < 8; h += 4) { /* 16 bytes of four vectors each make one */
            __m512i a = _mm512_shuffle_i64x2(v[h], v[h + 1], 0x44);
            __m512i b = _mm512_shuffle_i64x2(v[h], v[h + 1], 0xEE);
            __m512i c = _mm512_shuffle_i64x2(v[h + 2], v[h + 3], 0x44);
            __m512i d = _mm512_shuffle_i64x2(v[h + 2], v[h + 3], 0xEE);
            uint8_t *place = to + 8 * j + 16 * h;
            _mm512_storeu_si512(place, _mm512_shuffle_i64x2(a, c, 0x88));
            _mm512_storeu_si512(place + 128, _mm512_shuffle_i64x2(a, c, 0xDD));
            _mm512_storeu_si512(place + 256, _mm512_shuffle_i64x2(b, d, 0x88));
            _mm512_storeu_si512(place + 384, _mm512_shuffle_i64x2(b, d, 0xDD));
        }
    }
    join_bits_in_any(rows + j, pitch, n - j, to + 8 * j);
}
#endif

static void join_bits(const uint8_t *rows, size_t pitch, size_t n, uint8_t *to) {
#if X86
    if (instructions == AVX512) join_bits_avx512(rows, pitch, n, to);
    else if (instructions == AVX2) join_bits_avx2(rows, pitch, n, to);
    else
#endif
        join_bits_plain(rows, pitch, n, to);
}
