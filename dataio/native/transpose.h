/* Eight bytes as a matrix of 8 x 8 bits, transposed: by three exchanges of its halves, quarters and
   eighths (Hacker's Delight, 7-3). */

#pragma once
#include <stdint.h>
#include "instructions.h"

/* Exchange the bits of `mask` with those `n` places above. */
static ALWAYS_INLINE uint64_t exchanged(uint64_t v, int n, uint64_t mask) {
    uint64_t moved = (v ^ (v >> n)) & mask;
    return v ^ moved ^ (moved << n);
}

static ALWAYS_INLINE uint64_t transposed(uint64_t v) {
    v = exchanged(v, 7, 0x00AA00AA00AA00AAu);
    v = exchanged(v, 14, 0x0000CCCC0000CCCCu);
    return exchanged(v, 28, 0x00000000F0F0F0F0u);
}
