"""The PTX that Triton makes of a kernel, run on numpy: one element a thread, one block at a time.

    run_launch(launch, capability, blocks) runs it on the launch's own tensors

It sees what Triton's interpreter cannot, for it runs what the GPU will: an access outside its
tensor or off its width, shared memory that two warps touch without a barrier between, a barrier
that not all threads reach. Not seen: time, and the order of memory between blocks.
"""

import re
from collections.abc import Collection

import numpy as np
import torch
from ptx_arithmetic import result
from ptx_memory import WARP, Fault, GlobalMemory, SharedMemory
from ptx_program import Instruction, Program, UnknownInstructionError, parse
from ptx_values import Bits, packed, raw, unpacked, width_of

from mim3d.kernels.codegen import Launch, compile_launch, specialise

ADDRESS = re.compile(r"\[\s*([%\w.$]+)\s*(?:\+\s*(-?\w+))?\s*\]")
SIGNED = (1 << 64) - 1
NAN = 0x7FC00000


def run_launch(
    launch: Launch, capability: int = 90, blocks: Collection[tuple[int, int]] | None = None
) -> None:
    """Compile a recorded launch and run all of its blocks, or those of (x, y) that are named."""
    code = compile_launch(launch, capability)
    run_ptx(code.ptx, code.shared, launch, blocks)


def run_ptx(
    ptx: str, shared: int, launch: Launch, blocks: Collection[tuple[int, int]] | None = None
) -> None:
    """Run PTX that was made of a launch, on its tensors."""
    program = parse(ptx)
    values, tensors = parameters(launch)
    memory = GlobalMemory(tensors)
    values += [0] * (len(program.parameters) - len(values))  # Triton's own, unused
    grid_x, grid_y = (*launch.grid, 1)[:2]
    for y in range(grid_y):
        for x in range(grid_x):
            if blocks is None or (x, y) in blocks:
                Block(program, values, memory, (x, y), (grid_x, grid_y), shared).run()


def parameters(launch: Launch) -> tuple[list[int], list[torch.Tensor]]:
    """Raw values of the arguments that are no constants, and the tensors among them."""
    values: list[int] = []
    tensors: list[torch.Tensor] = []
    for name, kind in specialise(launch)[0].items():
        argument = launch.arguments[name]
        if kind == "constexpr":
            continue
        if isinstance(argument, torch.Tensor):
            tensors.append(argument)
            values.append(argument.data_ptr())
        elif kind == "fp32":
            values.append(int(np.float32(argument).view(np.uint32)))
        else:
            values.append(int(argument) & SIGNED)
    return values, tensors


class Block:
    """One block of threads in progress."""

    def __init__(
        self, program: Program, values: list[int], memory: GlobalMemory, place: tuple[int, int],
        grid: tuple[int, int], shared: int,
    ) -> None:  # fmt: skip
        self.program, self.memory = program, memory
        self.thread = np.arange(program.threads)
        self.warp = self.thread // WARP
        self.shared = SharedMemory(shared, program.threads)
        self.registers: dict[str, Bits] = {}
        self.values = dict(zip(program.parameters, values, strict=True))
        known = {"tid.x": self.thread, "laneid": self.thread % WARP}
        known |= {f"ctaid.{axis}": at for axis, at in zip("xyz", (*place, 0), strict=True)}
        known |= {f"nctaid.{axis}": n for axis, n in zip("xyz", (*grid, 1), strict=True)}
        self.special = {f"%{name}": self._all(value) for name, value in known.items()}

    def run(self) -> None:
        """Until every thread has returned; those furthest behind go first."""
        at = np.zeros(self.program.threads, int)
        done = np.zeros(self.program.threads, bool)
        while not done.all():
            now = int(at[~done].min())
            if now >= len(self.program.code):
                return
            active = (at == now) & ~done
            instruction = self.program.code[now]
            on = active & self._predicate(instruction)
            at[active] = now + 1
            name = instruction.parts[0]
            if name == "bra":
                at[on] = self.program.labels[instruction.operands[0]]
            elif name == "ret":
                done |= on
            elif name in ("bar", "barrier"):
                if not on.all():
                    raise Fault("a barrier that not every thread reaches")
                self.shared.barrier()
            elif on.any():
                self.step(instruction, on)

    def step(self, instruction: Instruction, on: np.ndarray) -> None:
        """One instruction for the threads that are `on`."""
        name, operands = instruction.parts[0], instruction.operands
        if name in ("ld", "st"):
            self._move(instruction, on)
        elif name in ("ldmatrix", "stmatrix"):
            self._matrix(instruction, on)
        elif name == "mov":
            self._copy(instruction, on)
        elif name in ("shfl", "redux"):
            self._across_lanes(instruction, on)
        else:
            kind = "b32" if name in ("shl", "shr", "prmt", "bfe") else instruction.kind
            given = [self._get(operand, kind) for operand in operands[1:]]
            self._put(operands[0], result(instruction, given), on)

    def _all(self, value: np.ndarray | int) -> Bits:
        return np.broadcast_to(np.asarray(value), self.thread.shape).astype(np.uint64)

    def _predicate(self, instruction: Instruction) -> np.ndarray:
        if instruction.predicate is None:
            return np.ones(len(self.thread), bool)
        return (self._get(instruction.predicate) != 0) != instruction.negated

    def _get(self, operand: str, kind: str = "b64") -> Bits:
        """Raw bits of a register, a special register or a constant."""
        if operand in self.special:
            return self.special[operand]
        if operand.startswith("%"):
            if operand not in self.registers:
                raise Fault(f"{operand} is read before it is written")
            return self.registers[operand]
        if operand in ("true", "false"):
            return self._all(operand == "true")
        if operand.startswith(("0f", "0d")):
            return self._all(int(operand[2:], 16))
        if operand == "global_smem":
            return self._all(0)
        number = int(operand.removesuffix("U"), 0) & SIGNED
        return np.full(self.thread.shape, number, np.uint64)

    def _part(self, register: str) -> Bits:
        """A register to be packed with others: the half of a pair that nobody will look at may be
        any value, and is NaN here."""
        known = register in self.registers or not register.startswith("%")
        return self._get(register) if known else self._all(NAN)

    def _put(self, register: str, bits: Bits, on: np.ndarray) -> None:
        if register == "_":
            return
        before = self.registers.get(register)
        self.registers[register] = (
            bits if before is None or on.all() else np.where(on, bits, before)
        )

    def _address(self, operand: str) -> Bits:
        found = ADDRESS.fullmatch(operand)
        assert found is not None, operand
        offset = int(found[2] or "0", 0) & SIGNED
        with np.errstate(over="ignore"):
            return self._get(found[1]) + np.uint64(offset)

    def _move(self, instruction: Instruction, on: np.ndarray) -> None:
        """ld and st of one value or a vector; parameters are not in memory."""
        parts, (first, second) = instruction.parts, instruction.operands
        if parts[1] == "param":
            bits = self._all(0) + np.uint64(self.values[second.strip("[]")] & SIGNED)
            return self._put(first, bits, on)
        load, width = parts[0] == "ld", width_of(instruction.kind) // 8
        registers = split(first if load else second)
        address = self._address(second if load else first)[on]
        if load:
            data = self._load(parts, address, width * len(registers), on)
            for place, register in enumerate(registers):
                part = np.ascontiguousarray(data[:, place * width : (place + 1) * width])
                bits = self._all(0)
                bits[on] = part.view(f"u{width}")[:, 0]
                self._put(register, bits, on)
            return None
        columns = [raw(self._get(r, instruction.kind)[on], f"u{8 * width}") for r in registers]
        data = np.stack([column.astype(f"u{width}") for column in columns], 1).view(np.uint8)
        if "shared" in parts:
            self.shared.store(address, data, self.warp[on])
        else:
            self.memory.store(address, data)
        return None

    def _load(
        self, parts: tuple[str, ...], address: Bits, width: int, on: np.ndarray
    ) -> np.ndarray:
        if "shared" in parts:
            return self.shared.load(address, width, self.warp[on])
        return self.memory.load(address, width)

    def _matrix(self, instruction: Instruction, on: np.ndarray) -> None:
        """ldmatrix and stmatrix: 8 x 8 tiles of 16 bits; lane 8 i + r has the address of row r of
        tile i, and every lane holds two neighbours of row lane / 4 (or, turned, of a column)."""
        self._whole_warps(on)
        load = instruction.parts[0] == "ldmatrix"
        registers = split(instruction.operands[0 if load else 1])
        rows = self._address(instruction.operands[1 if load else 0])
        lane, base = self.thread % WARP, self.warp * WARP
        for tile, register in enumerate(registers):
            if "trans" in instruction.parts:
                assert load, instruction
                places = [
                    rows[base + 8 * tile + 2 * (lane % 4) + half]
                    + (2 * (lane // 4)).astype(np.uint64)
                    for half in (0, 1)
                ]
                found = [
                    self.shared.load(p[on], 2, self.warp[on]).view(np.uint16)[:, 0] for p in places
                ]
                bits = self._all(0)
                bits[on] = packed([part.astype(np.uint64) for part in found], 16)
                self._put(register, bits, on)
                continue
            place = rows[base + 8 * tile + lane // 4] + (4 * (lane % 4)).astype(np.uint64)
            if load:
                bits = self._all(0)
                bits[on] = self.shared.load(place[on], 4, self.warp[on]).view(np.uint32)[:, 0]
                self._put(register, bits, on)
            else:
                data = self._get(register)[on].astype(np.uint32)[:, None].view(np.uint8)
                self.shared.store(place[on], data, self.warp[on])

    def _copy(self, instruction: Instruction, on: np.ndarray) -> None:
        """mov, which also packs registers into one and takes one apart."""
        target, source = instruction.operands
        if source.startswith("{"):
            parts = split(source)
            width = width_of(instruction.kind) // len(parts)
            self._put(target, packed([self._part(part) for part in parts], width), on)
        elif target.startswith("{"):
            registers = split(target)
            width = width_of(instruction.kind) // len(registers)
            parts = unpacked(self._get(source), len(registers), width)
            for register, part in zip(registers, parts, strict=True):
                self._put(register, part, on)
        else:
            self._put(target, self._get(source, instruction.kind), on)

    def _across_lanes(self, instruction: Instruction, on: np.ndarray) -> None:
        """shfl.bfly and redux.add, by whole warps."""
        self._whole_warps(on)
        target, source = instruction.operands[0].split("|")[0], instruction.operands[1]
        bits = self._get(source)
        if instruction.parts[0] == "redux":
            if "add" not in instruction.parts:
                raise UnknownInstructionError(".".join(instruction.parts))
            sums = bits.reshape(-1, WARP).sum(1) & np.uint64(0xFFFFFFFF)
            return self._put(target, np.repeat(sums, WARP), on)
        if "bfly" not in instruction.parts:
            raise UnknownInstructionError(".".join(instruction.parts))
        distance = int(instruction.operands[2], 0)
        return self._put(target, bits[self.thread ^ distance], on)

    def _whole_warps(self, on: np.ndarray) -> None:
        by_warp = on.reshape(-1, WARP)
        if (by_warp.any(1) != by_warp.all(1)).any():
            raise Fault("an instruction for whole warps that not every lane reaches")


def split(operand: str) -> list[str]:
    """Registers of `{a, b}`, or the one."""
    return [part.strip() for part in operand.strip("{} ").split(",")]
