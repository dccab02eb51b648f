/* LZ4 blocks to bytes: bounded by both ends whatever the input says, and may stop early. */

#pragma once
#include <stdint.h>
#include <string.h>
#include "codes.h"
#include "instructions.h"

enum { SLACK = 64 }; /* bytes behind a block that may be touched */

/* Add the bytes that extend a length of 15; 0 when the input ends within. */
static int longer(const uint8_t **in, const uint8_t *end, size_t *length) {
    uint8_t byte;
    do {
        if (*in >= end) return 0;
        byte = *(*in)++;
        *length += byte;
    } while (byte == 255);
    return 1;
}

/* Write `n` bytes that repeat the `back` bytes before `to`; up to 31 bytes more are touched.

   What overlaps itself is read once: each store begins where the good bytes of the one before end,
   so that none waits for another. */
static ALWAYS_INLINE void repeat(uint8_t *to, size_t back, size_t n) {
    /* With back < 8: the bytes to repeat, how they fill eight, and how many periods those are. */
    static const uint64_t mask[8] = {0,          0xFF,         0xFFFF,         0xFFFFFF,
                                     0xFFFFFFFF, 0xFFFFFFFFFF, 0xFFFFFFFFFFFF, 0xFFFFFFFFFFFFFF};
    static const uint64_t times[8] = {0,
                                      0x0101010101010101,
                                      0x0001000100010001,
                                      0x0001000001000001,
                                      0x0000000100000001,
                                      0x0000010000000001,
                                      0x0001000000000001,
                                      0x0100000000000001};
    static const uint8_t whole[8] = {0, 8, 8, 6, 8, 5, 6, 7};
    uint8_t *stop = to + n, bytes[32];
    const uint8_t *from = to - back;
    if (back >= 32) {
        do {
            memcpy(to, from, 32);
            to += 32, from += 32;
        } while (to < stop);
    } else if (back >= 16) {
        memcpy(bytes, from, 32); /* of which `back` are good */
        for (; to < stop; to += back) memcpy(to, bytes, 32);
    } else if (back >= 8) {
        memcpy(bytes, from, 16);
        for (; to < stop; to += back) memcpy(to, bytes, 16);
    } else {
        uint64_t word;
        memcpy(&word, from, 8); /* what lies at `to` and beyond is masked */
        word = (word & mask[back]) * times[back];
        size_t step = whole[back];
        if (step < 8) {
            for (; to < stop; to += step) memcpy(to, &word, 8);
        } else {
            uint64_t four[4] = {word, word, word, word};
            for (; to < stop; to += 32) memcpy(to, four, 32);
        }
    }
}

/* A match of up to 18 bytes, 4 more than `match`, where it can be written without a loop. */
static ALWAYS_INLINE int short_match_plain(uint8_t *to, size_t back, size_t match) {
    if (match > 14 || back < 8) return 0;
    memcpy(to, to - back, 8);
    memcpy(to + 8, to + 8 - back, 8);
    memcpy(to + 16, to + 16 - back, 2);
    return 1;
}

#define SET plain
#define TARGET
#include "lz4_block.h"

#if X86
/* Row `back`: which of the bytes before a match each of its first 16 repeats. */
static uint8_t repeated[17][16];

static void lz4_prepare(void) {
    for (int back = 1; back <= 16; back++)
        for (int i = 0; i < 16; i++) repeated[back][i] = (uint8_t)(i % back);
}

/* Up to 16 bytes, from however near: without a branch, which short matches would often mislead. */
static ALWAYS_INLINE AVX2_TARGET int short_match_avx2(uint8_t *to, size_t back, size_t match) {
    if (match > 12) return 0;
    const uint8_t *from = repeated[back < 16 ? back : 16];
    __m128i bytes = _mm_loadu_si128((const __m128i *)(to - back));
    bytes = _mm_shuffle_epi8(bytes, _mm_loadu_si128((const __m128i *)from));
    _mm_storeu_si128((__m128i *)to, bytes);
    return 1;
}

#define SET avx2
#define TARGET AVX2_TARGET
#include "lz4_block.h"
#else
static void lz4_prepare(void) {}
#endif

static int lz4(const uint8_t *in, size_t n, uint8_t *out, size_t size, size_t need) {
#if X86
    if (instructions >= AVX2) return lz4_avx2(in, n, out, size, need);
#endif
    return lz4_plain(in, n, out, size, need);
}
