/* The decoder of LZ4 blocks for one instruction set: included once for each, with SET its name and
   TARGET its attribute, behind its `short_match`. */

#define PASTE_(name, set) name##_##set
#define PASTE(name, set) PASTE_(name, set)

/* The first `need` of the `size` bytes of an LZ4 block of n bytes; `out` has SLACK bytes behind
   `size`. With need == size the block must end exactly there. */
TARGET static int PASTE(lz4, SET)(const uint8_t *in, size_t n, uint8_t *out, size_t size,
                                  size_t need) {
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
            if (back && back <= at && PASTE(short_match, SET)(out + at, back, match)) {
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

#undef PASTE
#undef PASTE_
#undef TARGET
#undef SET
