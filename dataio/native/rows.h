/* Rows of a crop, written by one instruction set: included once for each, with SET its name, TARGET
   its attribute, and its _lanes header read. Constant stride and clip are folded by the compiler. */

#define PASTE_(name, set) name##_##set
#define PASTE(name, set) PASTE_(name, set)
#define OF(name) PASTE(name, SET)

typedef void OF(WriteRun)(const Run *run, ptrdiff_t at, void *to, ptrdiff_t n, ptrdiff_t stride,
                          ptrdiff_t ahead, const Cast *cast, int clip);

/* Every row of the slab, run after run; `n` is the length of all runs, or 0 where they differ. */
TARGET static ALWAYS_INLINE void OF(write_runs)(OF(WriteRun) * write, const Slab *slab,
                                                const Cast *given, ptrdiff_t n, ptrdiff_t stride,
                                                int clip) {
    const Cast cast = *given; /* a copy: nothing that is written can change it */
    for (ptrdiff_t z = 0; z < slab->nz; z++)
        for (ptrdiff_t y = 0; y < slab->ny; y++) {
            ptrdiff_t at = z * slab->plane + y * slab->row;
            uint8_t *out = slab->out + z * cast.stride[0] + y * cast.stride[1];
            for (const Run *run = slab->runs; run < slab->runs + slab->n_runs; run++)
                write(run, at, out + run->to, n ? n : run->n, stride, cast.stride[0], &cast, clip);
        }
}

/* The same, with what is common made constant: the compiler folds it. */
TARGET static ALWAYS_INLINE void OF(write_rows)(OF(WriteRun) * write, size_t size, const Slab *slab,
                                                const Cast *cast) {
    const ptrdiff_t stride = cast->stride[2] / (ptrdiff_t)size, lanes = OF(LANES);
    ptrdiff_t others = 0; /* runs that are not one block */
    for (ptrdiff_t k = 0; k < slab->n_runs; k++) others += slab->runs[k].n != lanes;
    if (stride == 1 && !others && !cast->clip) OF(write_runs)(write, slab, cast, lanes, 1, 0);
    else if (stride == 1 && !others) OF(write_runs)(write, slab, cast, lanes, 1, 1);
    else if (stride == 1) OF(write_runs)(write, slab, cast, 0, 1, cast->clip);
    else if (stride == -1 && !others && !cast->clip)
        OF(write_runs)(write, slab, cast, lanes, -1, 0);
    else if (stride == -1 && !others) OF(write_runs)(write, slab, cast, lanes, -1, 1);
    else if (stride == -1) OF(write_runs)(write, slab, cast, 0, -1, cast->clip);
    else OF(write_runs)(write, slab, cast, 0, stride, cast->clip);
}

/* A macro for its types and expressions. The n voxels of a run in one row, from `a` to `d`, into `to`: `one` is voxel i, and `block` writes
   LANES of them, from i on, to `place`. What will be written `ahead` of them is fetched already.

   A run shorter than LANES, as a crop's edge cuts them, is written from a block of the chunk's row
   that holds it. Whole blocks overlap at the end of what is no multiple of LANES. */
#define WRITER(name, type, one, block)                                                             \
    TARGET static ALWAYS_INLINE void OF(name##_run)(const Run *run, ptrdiff_t at, void *row,       \
                                                    ptrdiff_t n, ptrdiff_t stride,                 \
                                                    ptrdiff_t ahead, const Cast *cast, int clip) { \
        type *to = row;                                                                            \
        const uint8_t *a = run->planes[0] + at, *b = run->planes[1] + at,                          \
                      *c = run->planes[2] + at, *d = run->planes[3] + at;                          \
        (void)b, (void)c, (void)d, (void)cast, (void)clip, (void)ahead;                            \
        const ptrdiff_t lanes = OF(LANES);                                                         \
        if (stride != 1 && stride != -1) {                                                         \
            for (ptrdiff_t i = 0; i < n; i++) to[i * stride] = (type)(one);                        \
        } else if (n >= lanes) {                                                                   \
            for (ptrdiff_t i = 0;; i += lanes) {                                                   \
                if (i > n - lanes) i = n - lanes;                                                  \
                type *place = stride == 1 ? to + i : to - i - (lanes - 1);                         \
                __builtin_prefetch((uint8_t *)place + ahead, 1);                                   \
                block;                                                                             \
                if (i == n - lanes) break;                                                         \
            }                                                                                      \
        } else if (run->before + run->behind + n >= lanes) {                                       \
            type place[OF(LANES)];                                                                 \
            const ptrdiff_t early = run->before < lanes - n ? run->before : lanes - n;             \
            const ptrdiff_t i = -early;                                                            \
            block;                                                                                 \
            type *first = stride == 1 ? to : to - (n - 1);                                         \
            type *wanted = place + (stride == 1 ? early : lanes - early - n);                      \
            put_some(first, wanted, n * sizeof(type), sizeof place - sizeof(type));                \
        } else {                                                                                   \
            for (ptrdiff_t i = 0; i < n; i++) to[i * stride] = (type)(one);                        \
        }                                                                                          \
    }                                                                                              \
    TARGET static void OF(name)(const Slab *slab, const Cast *cast) {                              \
        OF(write_rows)(OF(name##_run), sizeof(type), slab, cast);                                  \
    }
#define CASTER(name, one, floats)                                                                  \
    WRITER(name##_float32, float, changed(cast, (float)(one), clip),                               \
           OF(put_float32)(place, OF(changed)(floats, cast, clip)))                                \
    WRITER(name##_bfloat16, uint16_t, to_bfloat16(changed(cast, (float)(one), clip)),              \
           OF(put_bfloat16)(place, OF(changed)(floats, cast, clip)))

#define BYTES(p) OF(bytes)(p + i, stride < 0)
#define LOW_WORDS OF(words)(BYTES(a), BYTES(b))
#define INTS OF(w4)(LOW_WORDS, OF(words)(BYTES(c), BYTES(d)))
#define ONE2 (a[i] | b[i] << 8)
#define ONE4 (ONE2 | c[i] << 16 | (uint32_t)d[i] << 24)
CASTER(u1, a[i], OF(floats)(OF(u1)(BYTES(a))))
CASTER(i1, (int8_t)a[i], OF(floats)(OF(i1)(BYTES(a))))
CASTER(u2, ONE2, OF(floats)(OF(u2)(LOW_WORDS)))
CASTER(i2, (int16_t)(uint16_t)ONE2, OF(floats)(OF(i2)(LOW_WORDS)))
CASTER(i4, (int32_t)ONE4, OF(floats)(INTS))
CASTER(f4, as_float(ONE4), OF(as_floats)(INTS))
WRITER(copy_1, uint8_t, a[i], OF(put_1)(place, BYTES(a)))
WRITER(copy_2, uint16_t, ONE2, OF(put_2)(place, LOW_WORDS))
WRITER(copy_4, uint32_t, ONE4, OF(put_4)(place, INTS))

static void OF(write_slab)(const Slab *slab, const Cast *cast) {
#define CAST(name) (cast->mode == FLOAT32 ? OF(name##_float32) : OF(name##_bfloat16))(slab, cast)
    if (cast->mode == COPY)
        (cast->size == 1 ? OF(copy_1) : cast->size == 2 ? OF(copy_2) : OF(copy_4))(slab, cast);
    else if (cast->kind == 'f') CAST(f4);
    else if (cast->size == 4) CAST(i4);
    else if (cast->size == 2 && cast->kind == 'u') CAST(u2);
    else if (cast->size == 2) CAST(i2);
    else if (cast->kind == 'u') CAST(u1);
    else CAST(i1);
#undef CAST
}

#undef ONE4
#undef ONE2
#undef INTS
#undef LOW_WORDS
#undef BYTES
#undef CASTER
#undef WRITER
#undef OF
#undef PASTE
#undef PASTE_
#undef TARGET
#undef SET
