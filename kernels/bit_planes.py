# ruff: noqa: ANN001, ANN201 (Triton's device functions have no Python types)
"""Runs of sixteen voxels from planes of bits, joined in registers.

    join_planes(p_run, pitch, stored, ITEM) -> (runs, 16) uint32 words of 8 * ITEM bits

A chunk shuffled by bits holds bit k of all its voxels together: a run of sixteen voxels is one word
of 16 bits from each plane, and to join them is to turn a square of 16 x 16 bits. All planes are
asked for before the first is used, so that their loads are in flight together, and the square is
turned inside each thread by exchanging ever smaller blocks across the diagonal (Warren, Hacker's
Delight, 7-3): no shared memory, no barrier.
"""

from mim3d.kernels.backend import jit, tl


@jit
def load_plane(p_run, stored):
    """Sixteen bits of each run from one plane, as uint32."""
    return tl.load(p_run.to(tl.pointer_type(tl.uint16)), mask=stored, other=0).to(tl.uint32)


@jit
def load_planes(p_run, pitch, stored):
    """The same of eight planes that follow each other."""
    return (
        load_plane(p_run, stored),
        load_plane(p_run + 1 * pitch, stored),
        load_plane(p_run + 2 * pitch, stored),
        load_plane(p_run + 3 * pitch, stored),
        load_plane(p_run + 4 * pitch, stored),
        load_plane(p_run + 5 * pitch, stored),
        load_plane(p_run + 6 * pitch, stored),
        load_plane(p_run + 7 * pitch, stored),
    )


@jit
def exchange(a, b, DISTANCE: tl.constexpr, MASK: tl.constexpr):
    """Two rows of a square with the bits exchanged that lie DISTANCE apart on both axes."""
    moved = ((a >> DISTANCE) ^ b) & MASK
    return a ^ (moved << DISTANCE), b ^ moved


@jit
def turn_eight(r0, r1, r2, r3, r4, r5, r6, r7):
    """Eight rows after the exchanges at distances 4, 2 and 1."""
    r0, r4 = exchange(r0, r4, 4, 0x0F0F)
    r1, r5 = exchange(r1, r5, 4, 0x0F0F)
    r2, r6 = exchange(r2, r6, 4, 0x0F0F)
    r3, r7 = exchange(r3, r7, 4, 0x0F0F)
    r0, r2 = exchange(r0, r2, 2, 0x3333)
    r1, r3 = exchange(r1, r3, 2, 0x3333)
    r4, r6 = exchange(r4, r6, 2, 0x3333)
    r5, r7 = exchange(r5, r7, 2, 0x3333)
    r0, r1 = exchange(r0, r1, 1, 0x5555)
    r2, r3 = exchange(r2, r3, 1, 0x5555)
    r4, r5 = exchange(r4, r5, 1, 0x5555)
    r6, r7 = exchange(r6, r7, 1, 0x5555)
    return r0, r1, r2, r3, r4, r5, r6, r7


@jit
def join_rows(low, high):
    """(runs, 16) from rows 0..7 and 8..15, which become the last axis in order.

    A join's new axis runs fastest: rows that lie farthest apart are joined first.
    """
    l0, l1, l2, l3, l4, l5, l6, l7 = low
    h0, h1, h2, h3, h4, h5, h6, h7 = high
    r04 = tl.join(tl.join(l0, h0), tl.join(l4, h4))
    r26 = tl.join(tl.join(l2, h2), tl.join(l6, h6))
    r15 = tl.join(tl.join(l1, h1), tl.join(l5, h5))
    r37 = tl.join(tl.join(l3, h3), tl.join(l7, h7))
    return tl.join(tl.join(r04, r26), tl.join(r15, r37)).reshape(l0.shape[0], 16)


@jit
def turn_planes(p_run, pitch, stored, PLANES: tl.constexpr):
    """Words (runs, 16) of PLANES bits, 8 or 16, from as many planes."""
    l0, l1, l2, l3, l4, l5, l6, l7 = load_planes(p_run, pitch, stored)
    if PLANES == 16:
        h0, h1, h2, h3, h4, h5, h6, h7 = load_planes(p_run + 8 * pitch, pitch, stored)
    else:
        none = l0 * 0
        h0, h1, h2, h3, h4, h5, h6, h7 = none, none, none, none, none, none, none, none
    l0, h0 = exchange(l0, h0, 8, 0x00FF)
    l1, h1 = exchange(l1, h1, 8, 0x00FF)
    l2, h2 = exchange(l2, h2, 8, 0x00FF)
    l3, h3 = exchange(l3, h3, 8, 0x00FF)
    l4, h4 = exchange(l4, h4, 8, 0x00FF)
    l5, h5 = exchange(l5, h5, 8, 0x00FF)
    l6, h6 = exchange(l6, h6, 8, 0x00FF)
    l7, h7 = exchange(l7, h7, 8, 0x00FF)
    low = turn_eight(l0, l1, l2, l3, l4, l5, l6, l7)
    high = turn_eight(h0, h1, h2, h3, h4, h5, h6, h7)
    return join_rows(low, high)


@jit
def join_planes(p_run, pitch, stored, ITEM: tl.constexpr):
    """Words (runs, 16) of 8 * ITEM bits from as many planes, `pitch` bytes (runs,) apart."""
    word = turn_planes(p_run, pitch, stored, 8 if ITEM == 1 else 16)
    if ITEM == 4:
        word |= turn_planes(p_run + 16 * pitch, pitch, stored, 16) << 16
    return word
