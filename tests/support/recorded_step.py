"""A step's operations on tensors, recorded and done again without the Python that called them.

What a CUDA graph is to a GPU: every scalar is frozen, every tensor stays in its place, and what
asks the host for a number is refused.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

WAITS = (
    *("_local_scalar_dense", "item", "is_nonzero", "aten.equal", "nonzero", "masked_select"),
    *("unique", "allclose", "bincount", "_assert_async"),
)
"""Parts of the names of operations that make the host wait for the device."""


class WaitsForTheDeviceError(RuntimeError):
    """A step asked for a number."""


class Recorder(TorchDispatchMode):
    """Records operations, their arguments and results; all tensors stay alive, so none moves."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}
        """What was changed, and what it was."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(kind, Tensor) and hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # a tensor made of others does it by operations on them
        name = str(func)
        if name.startswith("profiler."):
            return func(*args, **(kwargs or {}))
        if any(part in name for part in WAITS):
            raise WaitsForTheDeviceError(f"{name} waits for the device")
        kwargs = kwargs or {}
        if writes(func):
            for tensor in tensors_of((args, kwargs)):
                place = (places(tensor), tensor.storage_offset(), tuple(tensor.shape))
                self.before.setdefault(place, (tensor, tensor.clone()))
        found = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, found))
        return found

    def signature(self) -> list[str]:
        """Each operation with all that is no tensor, in words."""
        words = []
        for func, args, kwargs, _ in self.calls:
            plain = tree_map_only(Tensor, lambda t: (t.shape, t.dtype), (args, kwargs))
            words.append(f"{func} {plain}")
        return words

    def undo(self) -> None:
        """Put back what was changed: a capture runs nothing."""
        with torch.no_grad():
            for tensor, kept in reversed(self.before.values()):
                tensor.copy_(kept)

    def replay(self) -> None:
        """All of them again, each result where it lay before."""
        with torch.no_grad():
            for func, args, kwargs, found in self.calls:
                given = {places(t) for t in tensors_of((args, kwargs))}
                made = tensors_of(found)
                if made and all(places(t) in given for t in made) and not writes(func):
                    continue  # a view
                again = tensors_of(func(*args, **kwargs))
                for into, value in zip(made, again, strict=True):
                    if places(into) not in given:
                        into.copy_(value)


def writes(func: Any) -> bool:
    """Whether an operation changes an argument."""
    return any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments)


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def places(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def recorded(run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """As `cuda_capture`."""
    recorder, drawn = Recorder(), torch.get_rng_state()
    with recorder:
        figures = run()
    recorder.undo()
    torch.set_rng_state(drawn)
    return figures, recorder.replay
