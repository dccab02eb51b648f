"""Compile kernels for a GPU that is not there, exactly as a launch would, and read the result.

    with recorded(module, "kernel") as launches: host_function(...)
    compile_launch(launches[0], capability=90) -> Code(ptx, registers, stack, shared, warps)

`recorded` swaps a kernel for a recorder: the host function runs as on a GPU, up to the launch, and
each launch's arguments are kept. `compile_launch` specialises them as Triton's launcher does and
compiles them with the assembler that comes with Triton; no driver and no device are needed.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

TYPES = {
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.uint16: "*u16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
}
RESERVED = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, its arguments by name, its options and its grid."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]
    grid: tuple[int, ...]


@dataclass
class LaunchRecorder:
    """Stands in for a kernel and keeps what it is launched with."""

    kernel: Any
    launches: list[Launch] = field(default_factory=list)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            options = {k: kwargs.pop(k) for k in RESERVED if k in kwargs}
            arguments = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
            self.launches.append(Launch(self.kernel, arguments, options, grid))

        return launch


@contextmanager
def recorded(module: Any, name: str) -> Iterator[list[Launch]]:
    """Launches of `module.name` while the context lasts."""
    kernel = getattr(module, name)
    recorder = LaunchRecorder(kernel)
    setattr(module, name, recorder)
    try:
        yield recorder.launches
    finally:
        setattr(module, name, kernel)


@dataclass(frozen=True)
class Code:
    """What the assembler made of a kernel."""

    ptx: str
    registers: int
    stack: int
    shared: int
    warps: int

    def accesses(self, operation: str) -> Counter[int]:
        """How many global accesses of each width in bytes; operation "ld" or "st"."""
        pattern = rf"\b{operation}\.global(?:\.[a-z:L0-9_]+?)*?(?:\.v(\d))?\.[bfsu](\d+)"
        widths: Counter[int] = Counter()
        for count, bits in re.findall(pattern, self.ptx):
            widths[int(count or 1) * int(bits) // 8] += 1
        return widths


def specialise(launch: Launch) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """(signature, constants, attributes) as Triton's binder would give them."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        one = type(value) is int and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or one:
            signature[name], constants[(index,)] = "constexpr", value
            continue
        aligned = True
        if isinstance(value, torch.Tensor):
            signature[name], aligned = TYPES[value.dtype], value.data_ptr() % 16 == 0
        elif isinstance(value, float):
            signature[name], aligned = "fp32", False
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0 and not parameter.do_not_specialize
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compile_launch(launch: Launch, capability: int) -> Code:
    """Compile for sm_<capability> and read registers, stack and shared memory from the cubin."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    signature, constants, attributes = specialise(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    compiled: Any = compile(source, target=target, options=dict(launch.options))
    ptx, cubin, metadata = compiled.asm["ptx"], compiled.asm["cubin"], compiled.metadata
    usage = resource_usage(cubin)
    return Code(ptx, usage["REG"], usage["STACK"], metadata.shared, metadata.num_warps)


def resource_usage(cubin: bytes) -> dict[str, int]:
    """cuobjdump's resource line, for example {"REG": 40, "STACK": 0, "SHARED": 0}."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}
