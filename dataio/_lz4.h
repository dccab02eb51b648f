/* LZ4 blocks to bytes: bounded by both ends whatever the input says, and may stop early. */

#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define NEWER __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define NEWER
#endif
enum { SLACK = 64, BAD_LZ4 = 2 };

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
static inline void repeat(uint8_t *to, size_t back, size_t n) {
    /* With back < 8: the bytes to repeat, how they fill eight, and how many periods those are. */
    static const uint64_t mask[8] = {0, 0xFF, 0xFFFF, 0xFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFF,
                                     0xFFFFFFFFFFFF, 0xFFFFFFFFFFFFFF};
    static const uint64_t times[8] = {0, 0x0101010101010101, 0x0001000100010001,
                                      0x0001000001000001, 0x0000000100000001, 0x0000010000000001,
                                      0x0001000000000001, 0x0100000000000001};
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

/* The first `need` of the `size` bytes of an LZ4 block of n bytes; `out` has SLACK bytes behind
   `size`. With need == size the block must end exactly there. */
NEWER static int lz4(const uint8_t *in, size_t n, uint8_t *out, size_t size, size_t need) {
    const uint8_t *end = in + n;
    size_t at = 0;
    while (in < end && (at < need || need == size)) {
        uint8_t token = *in++;
        size_t literals = token >> 4, match = token & 15;
        /* Most sequences are short: copy more than needed and branch less. At most 14 literals
           and a match of 18; what is touched beyond lies in the slack. */
        if (literals < 15 && end - in >= 18 && at + 32 <= size) {
            memcpy(out + at, in, 16);
            in += literals;
            at += literals;
            size_t back = in[0] | (size_t)in[1] << 8;
            if (match < 15 && back >= 8 && back <= at) {
                uint8_t *to = out + at;
                memcpy(to, to - back, 8);
                memcpy(to + 8, to + 8 - back, 8);
                memcpy(to + 16, to + 16 - back, 2);
                in += 2;
                at += match + 4;
                continue;
            }
        } else {
            if (literals == 15 && !longer(&in, end, &literals)) return BAD_LZ4;
            if (literals > (size_t)(end - in) || literals > size - at) return BAD_LZ4;
            if ((size_t)(end - in) >= literals + 32)
                for (size_t done = 0; done < literals; done += 32)
                    memcpy(out + at + done, in + done, 32);
            else memcpy(out + at, in, literals);
            in += literals;
            at += literals;
            if (in == end) return at == size ? 0 : BAD_LZ4;
        }
        if (end - in < 2) return BAD_LZ4;
        size_t back = in[0] | (size_t)in[1] << 8;
        in += 2;
        if (match == 15 && !longer(&in, end, &match)) return BAD_LZ4;
        match += 4;
        if (back == 0 || back > at || match > size - at) return BAD_LZ4;
        repeat(out + at, back, match);
        at += match;
    }
    return at >= need && need < size ? 0 : BAD_LZ4;
}
