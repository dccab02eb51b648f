"""What a step computes, as a list of operations with their shapes, without computing it.

The model runs forward and backward over tensors that have shapes and no memory (torch's fake
tensors), and every operation that torch would dispatch is written down: products, convolutions and
attention with their sizes, all else as passes over so many bytes. So a plan knows of whatever the
model is made of, plugins' encoders and methods too. Attention is one operation, as it is on a
device, and the arithmetic is in the type that the run would have.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.arithmetic.blocks import transformer_blocks
from mim3d.engine.arithmetic.recompute import draws_again
from mim3d.engine.planning.sharding import meta_model
from mim3d.engine.pretrain.config import PretrainConfig

Kind = Literal["product", "convolution", "attention", "pass", "view"]
PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
"""Products of matrices, and which argument is the left one."""
ATTENTION = "scaled_dot_product"
NO_WORK = ("empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided", "detach")
NOT_OPERATIONS = ("prim", "prims")


@dataclass(frozen=True)
class Part:
    """A tensor that an operation reads or writes: which memory, and how many bytes of it."""

    memory: int
    nbytes: float


@dataclass(frozen=True)
class Operation:
    """One operation of a step, as torch dispatches it."""

    name: str
    """Such as mm, gelu_backward, mim3d.masked_norm."""
    kind: Kind
    size: tuple[int, ...]
    """product: batch, m, n, k. attention: rows of heads, n, m, d. convolution: voxels read, voxels
    written, channels in and out, elements of a kernel, gradients (0 of a forward pass), crops. Else
    empty.
    """
    read: tuple[Part, ...]
    written: tuple[Part, ...]
    backward: bool = False

    @property
    def nbytes(self) -> float:
        """Bytes that it reads and writes, once each."""
        return sum(part.nbytes for part in (*self.read, *self.written))

    @property
    def flops(self) -> float:
        """Its arithmetic where it is products; a multiply-add is two."""
        if self.kind == "product":
            return 2.0 * math.prod(self.size)
        if self.kind == "attention":
            rows, n, m, d = self.size
            return (10.0 if self.backward else 4.0) * rows * n * m * d
        if self.kind == "convolution":
            read, written, wide_in, wide_out, kernel, gradients, _ = self.size
            voxels = min(read, written) if kernel == 8 else written
            return 2.0 * voxels * wide_in * wide_out * kernel * max(gradients, 1)
        return 0.0


@dataclass(frozen=True)
class Block:
    """Operations of one of the model's blocks, first and past the last, in the forward pass."""

    parameters: int
    first: int
    end: int


@dataclass(frozen=True)
class Work:
    """One micro-batch, forward and backward."""

    operations: tuple[Operation, ...]
    blocks: tuple[Block, ...]
    parameters: int
    tensors: int
    """Of parameters."""
    draws: bool = False
    """Whether blocks draw random numbers, and would again where they are recomputed."""

    @property
    def launches(self) -> int:
        """Operations that run something on a device."""
        return sum(1 for operation in self.operations if operation.kind != "view")

    @property
    def flops(self) -> float:
        """Of products alone."""
        return sum(operation.flops for operation in self.operations)


class Recorder(TorchDispatchMode):
    """Writes down every operation that is dispatched while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.backward = False
        self._kept: list[Any] = []  # so that no memory is named twice

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace not in NOT_OPERATIONS:
            found = operation_of(func, args, kwargs or {}, result, self.backward)
            self.operations.append(found)
            self._kept += [t.untyped_storage() for t in tensors_in((args, kwargs, result))]
        return result


def operation_of(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, backward: bool = False
) -> Operation:
    """What an operation was, from its arguments and result."""
    name = func._schema.name.removeprefix("aten::").replace("::", ".")
    inputs, outputs = tensors_in((args, kwargs)), tensors_in(result)
    mutates = func._schema.is_mutable
    read, written = parts_of(inputs), parts_of(outputs)
    if name in NO_WORK or (not mutates and aliases(inputs, outputs)):
        return Operation(name, "view", (), (), ())
    if name in PRODUCTS:
        left, right = args[PRODUCTS[name]], args[PRODUCTS[name] + 1]
        batch = left.shape[0] if left.dim() == 3 else 1
        size = (batch, left.shape[-2], right.shape[-1], left.shape[-1])
        return Operation(name, "product", size, read, written, backward)
    if ATTENTION in name:
        return Operation(name, "attention", attention_size(inputs, name), read, written, backward)
    if name.startswith("convolution"):
        size = convolution_size(name, args, result)
        return Operation(name, "convolution", size, read, written, backward)
    return Operation(name, "pass", (), read, written, backward)


def attention_size(inputs: list[Tensor], name: str) -> tuple[int, ...]:
    """Rows of heads, queries, keys, features of a head; a gradient stands first in backward."""
    query, key = inputs[1:3] if name.endswith("backward") else inputs[:2]
    return (math.prod(query.shape[:-2]), query.shape[-2], key.shape[-2], query.shape[-1])


def convolution_size(name: str, args: tuple[Any, ...], result: Any) -> tuple[int, ...]:
    """Voxels read and written, channels, kernel, how many gradients are asked for, and crops."""
    gradients = 0
    if name == "convolution_backward":
        gradient, source, weight = args[:3]
        gradients, written = int(args[-1][0]) + int(args[-1][1]), gradient
    else:
        (source, weight), written = args[:2], result
    return (
        *(voxels(source), voxels(written), source.shape[1], written.shape[1]),
        *(math.prod(weight.shape[2:]), gradients, source.shape[0]),
    )


def voxels(maps: Tensor) -> int:
    """Voxels of all maps (b, c, ...) of one channel."""
    return maps.numel() // maps.shape[1]


def tensors_in(values: Any) -> list[Tensor]:
    """Tensors of nested arguments."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def parts_of(tensors: list[Tensor]) -> tuple[Part, ...]:
    """Memory and bytes of tensors, each memory once; what is repeated by a stride of 0 is not."""
    found: dict[int, float] = {}
    for tensor in tensors:
        memory = tensor.untyped_storage()._cdata
        nbytes = float(min(tensor.numel() * tensor.element_size(), storage_bytes(tensor)))
        found[memory] = max(found.get(memory, 0.0), nbytes)
    return tuple(Part(memory, nbytes) for memory, nbytes in found.items())


def storage_bytes(tensor: Tensor) -> int:
    """Bytes of the memory that a tensor is a view of."""
    return tensor.untyped_storage().nbytes()


def aliases(inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Whether all that an operation gives is a view of what it was given."""
    given = {tensor.untyped_storage()._cdata for tensor in inputs}
    return bool(outputs) and all(t.untyped_storage()._cdata in given for t in outputs)


def step_work(config: PretrainConfig, micro_batch: int, dtype: torch.dtype) -> Work:
    """The work of one micro-batch of a run, with arithmetic in `dtype`."""
    model = meta_model(config).to(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device="cpu")
        batch, recorder = fake_batch(config, micro_batch), Recorder()
        marks: list[Block] = []
        hooks = list(mark_blocks(model, recorder, marks))
        with recorder:
            loss = model(batch)[0]
            recorder.backward = True
            loss.backward()
    for hook in hooks:
        hook.remove()
    parameters = [p for p in model.parameters() if p.requires_grad]
    return Work(
        tuple(recorder.operations),
        tuple(sorted(marks, key=lambda block: block.first)),
        sum(p.numel() for p in parameters),
        len(parameters),
        draws_again(model),
    )


def mark_blocks(model: torch.nn.Module, recorder: Recorder, marks: list[Block]) -> Iterator[Any]:
    """Hooks that write down which operations are those of each block's forward pass."""
    began: dict[torch.nn.Module, int] = {}

    def begin(block: torch.nn.Module, _: Any) -> None:
        began[block] = len(recorder.operations)

    def end(block: torch.nn.Module, _: Any, __: Any) -> None:
        count = sum(p.numel() for p in block.parameters())
        marks.append(Block(count, began[block], len(recorder.operations)))

    for block in transformer_blocks(model):
        yield block.register_forward_pre_hook(begin)
        yield block.register_forward_hook(end)


def fake_batch(config: PretrainConfig, b: int) -> Batch:
    """A batch of the run's shape; within a fake mode its crops have no memory."""
    crops = torch.empty(b, config.vit.channels, *config.vit.crop_size)
    second = torch.empty_like(crops) if config.method.views == 2 else None
    zeros = torch.zeros(b, dtype=torch.int64)
    return Batch(crops, second, None, zeros, torch.zeros(b, 3).long(), torch.arange(b), 0)
