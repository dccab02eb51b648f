"""Arithmetic of PTX on numpy: what an instruction without memory or control makes of its inputs."""

from collections.abc import Callable, Sequence

import numpy as np
from ptx_program import Instruction, UnknownInstructionError
from ptx_values import Bits, halves, packed, raw, typed, width_of

COMPARISONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal,
}  # fmt: skip
WIDER = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}
ROUNDINGS = frozenset(["rn", "rz", "rzi", "rni", "rmi", "sat", "ftz"])


def result(instruction: Instruction, given: Sequence[Bits]) -> Bits:
    """Raw bits of the result; UnknownInstructionError where it is not known."""
    name, parts, kind = instruction.parts[0], instruction.parts, instruction.kind
    if kind == "f32x2":
        return packed_pairs(instruction, given)
    with np.errstate(all="ignore"):
        if name == "cvt":
            return converted(instruction, given)
        if name == "setp":
            compare = COMPARISONS[parts[1]]
            return raw(compare(typed(given[0], kind), typed(given[1], kind)), "pred")
        if name == "selp":
            return np.where(given[2] != 0, given[0], given[1])
        if name in ("shl", "shr"):
            return shifted(name, kind, given)
        if name == "prmt":
            return permuted(given)
        if name == "bfe":
            return bit_field(kind, given)
        if name in ("mul", "mad") and "wide" in parts:
            return widened(kind, given)
        if name == "mul" and "hi" in parts:
            wide = widened(kind, given)
            return raw(typed(wide, WIDER[kind]) >> width_of(kind), kind)
        if kind == "bf16" and parts[-2] == "f32":  # a bfloat16 and a float32
            numbers = [typed(given[0], "bf16"), *(typed(bits, "f32") for bits in given[1:])]
            return raw(plain(name, "f32", numbers), "f32")
        return raw(plain(name, kind, [typed(bits, kind) for bits in given]), kind)


def plain(name: str, kind: str, x: list[np.ndarray]) -> np.ndarray:
    """Operations whose inputs and result are of one type."""
    if kind[0] == "f":
        operations: dict[str, Callable[[], np.ndarray]] = {
            "div": lambda: x[0] / x[1], "sqrt": lambda: np.sqrt(x[0]), "rcp": lambda: 1 / x[0],
            # A float64 holds the product exactly; its sum is rounded twice, seldom to another bit.
            "fma": lambda: x[0].astype(np.float64) * x[1] + x[2],
        }  # fmt: skip
    else:
        operations = {
            "and": lambda: x[0] & x[1], "or": lambda: x[0] | x[1], "xor": lambda: x[0] ^ x[1],
            "not": lambda: ~x[0], "mad": lambda: x[0] * x[1] + x[2],
            "div": lambda: quotient(x[0], x[1]),
            "rem": lambda: x[0] - quotient(x[0], x[1]) * x[1],
        }  # fmt: skip
    operations |= {
        "add": lambda: x[0] + x[1], "sub": lambda: x[0] - x[1], "mul": lambda: x[0] * x[1],
        "neg": lambda: -x[0], "abs": lambda: np.abs(x[0]), "min": lambda: np.minimum(x[0], x[1]),
        "max": lambda: np.maximum(x[0], x[1]),
    }  # fmt: skip
    if name not in operations:
        raise UnknownInstructionError(f"{name} of {kind}")
    return operations[name]()


def quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integer division towards zero; whatever where the divisor is 0, as on a GPU."""
    divisor = np.where(b == 0, 1, b)
    found = np.abs(a.astype(np.int64)) // np.abs(divisor.astype(np.int64))
    return (found * np.sign(a.astype(np.int64)) * np.sign(divisor.astype(np.int64))).astype(a.dtype)


def converted(instruction: Instruction, given: Sequence[Bits]) -> Bits:
    """cvt: to the first type named from the last; bf16x2 packs two, the first highest."""
    kinds = [part for part in instruction.parts[1:] if part not in ROUNDINGS]
    target, source = kinds[0], kinds[-1]
    if target == "bf16x2":
        low, high = (raw(typed(bits, "f32"), "bf16") for bits in (given[1], given[0]))
        return packed([low, high], 16)
    values = typed(given[0], source)
    return raw(np.floor(values) if "rmi" in instruction.parts else values, target)


def shifted(name: str, kind: str, given: Sequence[Bits]) -> Bits:
    """shl and shr; a distance beyond the width leaves nothing but the sign."""
    width = width_of(kind)
    values, distance = typed(given[0], kind), typed(given[1], "u32").astype(np.int64)
    if name == "shl":
        moved = given[0] << np.minimum(distance, 63).astype(np.uint64)
        return raw(typed(np.where(distance >= width, np.uint64(0), moved), kind), kind)
    held = np.minimum(distance, width - 1).astype(values.dtype)
    moved = values >> held
    if kind[0] != "s":
        moved = np.where(distance >= width, 0, moved).astype(values.dtype)
    return raw(moved, kind)


def permuted(given: Sequence[Bits]) -> Bits:
    """prmt: each nibble of the selector takes a byte of two words, or its sign throughout."""
    both, out = packed(list(given[:2]), 32), []
    for place in range(4):
        chosen = given[2] >> np.uint64(4 * place) & np.uint64(15)
        byte = both >> (np.uint64(8) * (chosen & np.uint64(7))) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        out.append(np.where(chosen & np.uint64(8), sign, byte))
    return packed(out, 8)


def bit_field(kind: str, given: Sequence[Bits]) -> Bits:
    """bfe: so many bits from a place on, with their sign."""
    width = width_of(kind)
    bits = given[0] & np.uint64((1 << width) - 1)
    place, length = given[1], np.maximum(given[2], 1)
    field = bits >> place & ((np.uint64(1) << length) - np.uint64(1))
    if kind[0] == "s":
        up = np.uint64(64) - length
        field = ((field << up).view(np.int64) >> up.astype(np.int64)).view(np.uint64)
    return raw(typed(field, kind), kind)


def widened(kind: str, given: Sequence[Bits]) -> Bits:
    """mul.wide, and mad.wide where a third is given."""
    wide = WIDER[kind]
    dtype = typed(given[0], wide).dtype
    found = typed(given[0], kind).astype(dtype) * typed(given[1], kind).astype(dtype)
    return raw(found + typed(given[2], wide) if len(given) > 2 else found, wide)


def packed_pairs(instruction: Instruction, given: Sequence[Bits]) -> Bits:
    """Two float32 in 64 bits, each by itself."""
    name = instruction.parts[0]
    pairs = zip(*(halves(bits) for bits in given), strict=True)
    with np.errstate(all="ignore"):
        found = [raw(plain(name, "f32", [typed(b, "f32") for b in part]), "f32") for part in pairs]
    return packed(found, 32)
