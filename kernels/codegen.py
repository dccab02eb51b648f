"""Compile kernels for a GPU that is not there, exactly as a launch would, and read the result.

`recorded(module, name)` swaps a kernel for a recorder: the host function then runs as on a GPU, up
to the launch, and each launch's arguments are kept. `compile_launch` specialises them as Triton
does and compiles to a cubin; `Code` holds what ptxas says of it.
"""

import re
import subprocess
import tempfile
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
class Recorder:
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
    recorder = Recorder(kernel)
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

    def widest(self, operation: str) -> int:
        """Bytes of the widest global access of `operation` ("ld" or "st") in the PTX."""
        found = re.findall(rf"{operation}\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[bfu](\d+)", self.ptx)
        return max((int(n or 1) * int(bits) // 8 for n, bits in found), default=0)


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
            signature[name] = TYPES[value.dtype]
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
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = specialise(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = dict(launch.options)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage = resource_usage(compiled.asm["cubin"])
    return Code(
        compiled.asm["ptx"], usage["REG"], usage["STACK"], compiled.metadata.shared,
        compiled.metadata.num_warps,
    )  # fmt: skip


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
