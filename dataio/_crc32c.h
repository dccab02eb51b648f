/* CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), as Zarr's crc32c codec has it.

   The processor's instruction takes 8 bytes in 3 cycles but could take 8 in each: three lanes of
   LANE bytes run at once and are joined by a table that advances a checksum over LANE zeros.
   Without the instruction: eight bytes a step by tables. */

#pragma once
#include <stdint.h>
#include <string.h>

enum { LANE = 256 };
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
        uint32_t low = crc ^ (p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
                              (uint32_t)p[3] << 24);
        crc = crc_table[7][low & 255] ^ crc_table[6][low >> 8 & 255] ^
              crc_table[5][low >> 16 & 255] ^ crc_table[4][low >> 24] ^ crc_table[3][p[4]] ^
              crc_table[2][p[5]] ^ crc_table[1][p[6]] ^ crc_table[0][p[7]];
    }
    while (n--) crc = crc_table[0][(crc ^ *p++) & 255] ^ crc >> 8;
    return crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("sse4.2"))) static uint32_t crc_by_instruction(uint32_t crc,
                                                                     const uint8_t *p, size_t n) {
    uint64_t a = crc, b, c, word;
#define STEP(lane, at)                                                                           \
    memcpy(&word, at, 8);                                                                        \
    lane = __builtin_ia32_crc32di(lane, word)
    for (; n >= 3 * LANE; n -= 3 * LANE, p += 3 * LANE) {
        b = c = 0;
        for (int i = 0; i < LANE; i += 8) {
            STEP(a, p + i);
            STEP(b, p + LANE + i);
            STEP(c, p + 2 * LANE + i);
        }
        a = crc_moved(crc_moved((uint32_t)a) ^ (uint32_t)b) ^ (uint32_t)c;
    }
    for (; n >= 8; n -= 8, p += 8) { STEP(a, p); }
#undef STEP
    uint32_t rest = (uint32_t)a;
    while (n--) rest = __builtin_ia32_crc32qi(rest, *p++);
    return rest;
}
#endif

static uint32_t crc32c(const uint8_t *p, size_t n) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("sse4.2")) return ~crc_by_instruction(~(uint32_t)0, p, n);
#endif
    return ~crc_by_tables(~(uint32_t)0, p, n);
}
