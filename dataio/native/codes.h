/* What the loops answer; chunks/decode.py and device/streams.py know the numbers. */

#pragma once

enum {
    OK = 0,
    BAD_FRAME = 1,
    BAD_LZ4 = 2,
    NO_MEMORY = 3, /* the scratch is too small */
    OTHER = 4,     /* of a kind that is left to numcodecs */
    BAD_CRC = 5,
    IO_ERROR = 6,
    SHORT_FILE = 7,
    NO_ROOM = 8, /* the buffer of streams is full */
};
