"""Register contents: raw bits in uint64, one element a thread, and the numbers they stand for."""

import numpy as np

Bits = np.ndarray  # (threads,) uint64
WIDTHS = {"pred": 1, "bf16": 16}


def width_of(kind: str) -> int:
    """Bits of a type such as s32."""
    return WIDTHS.get(kind) or int(kind[1:].removeprefix("f"))


def typed(bits: Bits, kind: str) -> np.ndarray:
    """The numbers that raw bits are in a type; bf16 as float32, pred as bool."""
    if kind == "pred":
        return bits != 0
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    width = width_of(kind)
    low = bits.astype(f"u{width // 8}")
    return low if kind[0] in "bu" else low.view(f"{'i' if kind[0] == 's' else 'f'}{width // 8}")


def raw(values: np.ndarray, kind: str) -> Bits:
    """Raw bits of numbers in a type, rounded or wrapped to it."""
    if kind == "pred":
        return values.astype(bool).astype(np.uint64)
    if kind == "bf16":
        return bfloat16(values.astype(np.float32))
    width = width_of(kind)
    if kind[0] == "f":
        return values.astype(f"f{width // 8}").view(f"u{width // 8}").astype(np.uint64)
    return values.astype(f"{'i' if kind[0] == 's' else 'u'}{width // 8}").view(
        f"u{width // 8}"
    ).astype(np.uint64)  # fmt: skip


def bfloat16(values: np.ndarray) -> Bits:
    """Bits of float32 values rounded to bfloat16, to the nearest even."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    rounded = (bits + (bits >> np.uint64(16) & np.uint64(1)) + np.uint64(0x7FFF)) >> np.uint64(16)
    return np.where(np.isnan(values), np.uint64(0x7FFF), rounded)


def halves(bits: Bits) -> tuple[Bits, Bits]:
    """Low and high 32 bits."""
    return bits & np.uint64(0xFFFFFFFF), bits >> np.uint64(32)


def packed(parts: list[Bits], width: int) -> Bits:
    """One value of parts `width` bits wide, the first lowest."""
    found = np.zeros_like(parts[0])
    for place, part in enumerate(parts):
        found |= (part & np.uint64((1 << width) - 1)) << np.uint64(width * place)
    return found


def unpacked(bits: Bits, count: int, width: int) -> list[Bits]:
    """`count` parts of a value, `width` bits wide, the lowest first."""
    mask = np.uint64((1 << width) - 1)
    return [bits >> np.uint64(width * place) & mask for place in range(count)]
