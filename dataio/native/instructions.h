/* Which instruction sets the loops may use: what the processor has, or less where a test asks. */

#pragma once
#include <string.h>

#define ALWAYS_INLINE inline __attribute__((always_inline))
#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 9)
#define X86 1
#include <immintrin.h>
#define SSE_TARGET __attribute__((target("sse4.2")))
#define AVX2_TARGET __attribute__((target("avx2")))
/* Ice Lake, Zen 4 and later. */
#define AVX512_TARGET                                                                              \
    __attribute__((target("sse4.2,pclmul,avx2,avx512f,avx512bw,avx512vl,gfni,vpclmulqdq")))
#else
#define X86 0
#endif

enum { PLAIN = 0, AVX2 = 1, AVX512 = 2 };
static const char *const instruction_names[] = {"plain", "avx2", "avx512"};
static int instructions = PLAIN;

static int best_instructions(void) {
#if X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2")) return PLAIN;
    if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul") &&
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("gfni") &&
        __builtin_cpu_supports("vpclmulqdq"))
        return AVX512;
    return AVX2;
#else
    return PLAIN;
#endif
}

/* Use the best, or at most those of this name; 0 where there is no such name. */
static int choose_instructions(const char *most) {
    int best = best_instructions();
    for (int i = PLAIN; i <= AVX512; i++)
        if (!strcmp(most, "") || !strcmp(most, instruction_names[i])) {
            instructions = !strcmp(most, "") || i > best ? best : i;
            return 1;
        }
    return 0;
}
