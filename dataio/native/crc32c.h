/* CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), as Zarr's crc32c codec has it.

   With AVX-512, 64 bytes at a time are carried over what follows them by multiplying without carries
   (Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ", Intel 2009). Else
   by the processor's instruction, which takes 8 bytes in 3 cycles but could take 8 in each: three
   lanes of LANE bytes run at once and are joined by a table that advances a checksum over LANE
   zeros. Without either: eight bytes a step by tables. */

#pragma once
#include <stdint.h>
#include <string.h>
#include "instructions.h"

enum { LANE = 256, CRC_BYTES = 4 };
static uint32_t crc_table[8][256], crc_advance[4][256];

static uint32_t crc_zeros(uint32_t crc, int n) {
    while (n--) crc = crc_table[0][crc & 255] ^ crc >> 8;
    return crc;
}

/* To be called once, before any checksum. */
static void crc_prepare(void) {
    for (uint32_t v = 0; v < 256; v++) {
        uint32_t crc = v;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
        crc_table[0][v] = crc;
    }
    for (int i = 1; i < 8; i++)
        for (int v = 0; v < 256; v++) crc_table[i][v] = crc_zeros(crc_table[i - 1][v], 1);
    for (int bit = 0; bit < 32; bit++) { /* the map is linear: bits first, then their sums */
        uint32_t moved = crc_zeros((uint32_t)1 << bit, LANE);
        for (int v = 0; v < 256; v++)
            if (v >> (bit & 7) & 1) crc_advance[bit >> 3][v] ^= moved;
    }
}

static inline uint32_t crc_moved(uint32_t crc) {
    return crc_advance[0][crc & 255] ^ crc_advance[1][crc >> 8 & 255] ^
           crc_advance[2][crc >> 16 & 255] ^ crc_advance[3][crc >> 24];
}

static uint32_t crc_by_tables(uint32_t crc, const uint8_t *p, size_t n) {
    for (; n >= 8; n -= 8, p += 8) {
        uint32_t low =
            crc ^ (p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
        crc = crc_table[7][low & 255] ^ crc_table[6][low >> 8 & 255] ^
              crc_table[5][low >> 16 & 255] ^ crc_table[4][low >> 24] ^ crc_table[3][p[4]] ^
              crc_table[2][p[5]] ^ crc_table[1][p[6]] ^ crc_table[0][p[7]];
    }
    while (n--) crc = crc_table[0][(crc ^ *p++) & 255] ^ crc >> 8;
    return crc;
}

#if X86
static ALWAYS_INLINE SSE_TARGET uint64_t crc_of_eight(uint64_t crc, const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return __builtin_ia32_crc32di(crc, word);
}

SSE_TARGET static uint32_t crc_by_instruction(uint32_t crc, const uint8_t *p, size_t n) {
    uint64_t a = crc, b, c;
    for (; n >= 3 * LANE; n -= 3 * LANE, p += 3 * LANE) {
        b = c = 0;
        for (int i = 0; i < LANE; i += 8) {
            a = crc_of_eight(a, p + i);
            b = crc_of_eight(b, p + LANE + i);
            c = crc_of_eight(c, p + 2 * LANE + i);
        }
        a = crc_moved(crc_moved((uint32_t)a) ^ (uint32_t)b) ^ (uint32_t)c;
    }
    for (; n >= 8; n -= 8, p += 8) a = crc_of_eight(a, p);
    uint32_t rest = (uint32_t)a;
    while (n--) rest = __builtin_ia32_crc32qi(rest, *p++);
    return rest;
}

/* 16 bytes of `sum`, as a polynomial, times what carries them over `by`'s distance, added to the
   bytes there. */
static ALWAYS_INLINE AVX512_TARGET __m512i carried(__m512i sum, __m512i by, __m512i next) {
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(sum, by, 0x00),
                                     _mm512_clmulepi64_epi128(sum, by, 0x11), next, 0x96);
}

/* n >= 64. The constants are x^(8 d + 32) and x^(8 d - 32) modulo the polynomial for distances d of
   256 and 64 bytes, their bits reversed and moved up by one. */
AVX512_TARGET static uint32_t crc_by_carrying(uint32_t crc, const uint8_t *p, size_t n) {
    const __m512i far = _mm512_broadcast_i32x4(_mm_set_epi64x(0xB9E02B86, 0xDCB17AA4));
    const __m512i near = _mm512_broadcast_i32x4(_mm_set_epi64x(0x9E4ADDF8, 0x740EEF02));
    __m512i a = _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc));
    a = _mm512_xor_si512(a, _mm512_loadu_si512(p));
    p += 64, n -= 64;
    if (n >= 192 + 256) {
        __m512i b = _mm512_loadu_si512(p), c = _mm512_loadu_si512(p + 64);
        __m512i d = _mm512_loadu_si512(p + 128);
        for (p += 192, n -= 192; n >= 256; p += 256, n -= 256) {
            a = carried(a, far, _mm512_loadu_si512(p));
            b = carried(b, far, _mm512_loadu_si512(p + 64));
            c = carried(c, far, _mm512_loadu_si512(p + 128));
            d = carried(d, far, _mm512_loadu_si512(p + 192));
        }
        b = carried(a, near, b);
        c = carried(b, near, c);
        a = carried(c, near, d);
    }
    for (; n >= 64; p += 64, n -= 64) a = carried(a, near, _mm512_loadu_si512(p));
    uint8_t left[64];
    _mm512_storeu_si512(left, a);
    return crc_by_instruction(crc_by_instruction(0, left, sizeof left), p, n);
}
#endif

static uint32_t crc32c(const uint8_t *p, size_t n) {
#if X86
    if (instructions == AVX512 && n >= 64) return ~crc_by_carrying(~(uint32_t)0, p, n);
    if (instructions >= AVX2) return ~crc_by_instruction(~(uint32_t)0, p, n);
#endif
    return ~crc_by_tables(~(uint32_t)0, p, n);
}
