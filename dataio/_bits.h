/* Bit planes to bytes: blosc's bit shuffle undone for one byte of the voxels.

   Row k of eight holds bit k of the byte, of eight voxels in each of its bytes, the first in the
   lowest bit (bitshuffle's layout). The rows' bytes are interleaved, which makes of each eight
   voxels a matrix of 8 x 8 bits, and every matrix is transposed by three exchanges of its halves,
   quarters and eighths (Hacker's Delight, 7-3), 32 bytes at a time. */

#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "_cast.h"

enum { WIDE = 32 };
typedef uint8_t wide __attribute__((vector_size(WIDE)));
typedef uint64_t words __attribute__((vector_size(WIDE)));

#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (wide){__VA_ARGS__})
#endif
/* Bytes of a and b in turn, of the lower or the upper half of each 16: one instruction. */
#define LOWER(a, b)                                                                              \
    PICK(a, b, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 16, 48, 17, 49, 18, 50,   \
         19, 51, 20, 52, 21, 53, 22, 54, 23, 55)
#define UPPER(a, b)                                                                              \
    PICK(a, b, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 24, 56, 25, 57, 26, \
         58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63)
/* Exchange the bits of `mask` with those `n` places above. */
#define EXCHANGE(v, n, mask)                                                                     \
    do {                                                                                         \
        __typeof__(v) moved_ = (v ^ (v >> n)) & mask;                                            \
        v ^= moved_ ^ (moved_ << n);                                                             \
    } while (0)
#define TRANSPOSE(v)                                                                             \
    do {                                                                                         \
        EXCHANGE(v, 7, 0x00AA00AA00AA00AAu);                                                     \
        EXCHANGE(v, 14, 0x0000CCCC0000CCCCu);                                                    \
        EXCHANGE(v, 28, 0x00000000F0F0F0F0u);                                                    \
    } while (0)

/* The first `n` bytes of eight rows, `pitch` bytes apart, to 8 n bytes. Row k is what `ROW(k)` says
   for a transposition that wants its matrices in another order. */
#define JOINER(name, ROW, TURN)                                                                  \
    static void name(const uint8_t *rows, size_t pitch, size_t n, uint8_t *to) {                 \
        size_t j = 0;                                                                            \
        for (; j + WIDE <= n; j += WIDE) {                                                       \
            wide r[8], pairs[8], fours[8];                                                       \
            for (int k = 0; k < 8; k++) memcpy(&r[k], rows + ROW(k) * pitch + j, WIDE);          \
            for (int k = 0; k < 4; k++) { /* rows k and k + 4 */                                 \
                pairs[2 * k] = LOWER(r[k], r[k + 4]);                                            \
                pairs[2 * k + 1] = UPPER(r[k], r[k + 4]);                                        \
            }                                                                                    \
            for (int k = 0; k < 2; k++) /* rows k, k + 2, k + 4, k + 6 */                        \
                for (int h = 0; h < 2; h++) {                                                    \
                    wide a = pairs[2 * k + h], b = pairs[2 * k + 4 + h];                         \
                    fours[4 * k + 2 * h] = LOWER(a, b);                                          \
                    fours[4 * k + 2 * h + 1] = UPPER(a, b);                                      \
                }                                                                                \
            for (int h = 0; h < 8; h++) {                                                        \
                wide a = fours[h >> 1], b = fours[4 + (h >> 1)];                                 \
                words v = (words)(h & 1 ? UPPER(a, b) : LOWER(a, b));                            \
                TURN(v);                                                                         \
                uint8_t *place = to + 8 * j + 16 * h; /* two words of each half of 16 bytes */   \
                memcpy(place, &v, 16);                                                           \
                memcpy(place + 128, (const uint8_t *)&v + 16, 16);                               \
            }                                                                                    \
        }                                                                                        \
        for (; j < n; j++) {                                                                     \
            uint64_t v = 0;                                                                      \
            for (int k = 0; k < 8; k++) v |= (uint64_t)rows[k * pitch + j] << 8 * k;             \
            TRANSPOSE(v);                                                                        \
            for (int i = 0; i < 8; i++) to[8 * j + i] = (uint8_t)(v >> 8 * i);                   \
        }                                                                                        \
    }

#define IN_ORDER(k) (k)
FAST JOINER(join_bits_plainly, IN_ORDER, TRANSPOSE)

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#include <immintrin.h>
/* One instruction instead of the three exchanges: byte j of the constant, times a matrix, is the
   matrix' column j, from the last row to the first. */
#define REVERSED(k) (7 - (k))
#define BY_GFNI(v)                                                                               \
    v = (words)_mm256_gf2p8affine_epi64_epi8(_mm256_set1_epi64x((long long)0x8040201008040201u), \
                                             (__m256i)v, 0)
__attribute__((target("gfni,avx2"))) JOINER(join_bits_by_gfni, REVERSED, BY_GFNI)

static void join_bits(const uint8_t *rows, size_t pitch, size_t n, uint8_t *to) {
    if (__builtin_cpu_supports("gfni") && __builtin_cpu_supports("avx2"))
        join_bits_by_gfni(rows, pitch, n, to);
    else
        join_bits_plainly(rows, pitch, n, to);
}
#else
#define join_bits join_bits_plainly
#endif
