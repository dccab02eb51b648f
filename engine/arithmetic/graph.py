"""A step that the device repeats by itself: its kernels captured once, then launched as one.

    step = StepGraph(run, note)
    figures = step(batch)

The first WARMUP steps run as always, so that libraries are loaded and kernels compiled. Then the
kernels of a step are captured (they do not run while they are), from buffers that stay in place;
from there on a step is a batch copied into them and one launch. Where capturing fails, steps go on
as they began, and a line says why.
"""

import dataclasses
import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mim3d.dataio.errors import first_line
from mim3d.dataio.loader.batch import Batch

WARMUP = 3
ON_DEVICE = ("image", "second_view", "label", "weight", "sample")
"""Fields of a batch that a step reads."""

Run = Callable[[Batch], dict[str, Tensor]]
"""A whole step: 0-d float tensors on the device, by name."""


@dataclass(frozen=True)
class Captured:
    """What replaying gives, always in the same place."""

    replay: Callable[[], None]
    figures: Tensor
    names: tuple[str, ...]


Capture = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""Records what a function does to tensors, gives its result and a way to do it again."""


def cuda_capture(run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """A CUDA graph of the kernels that `run` launches."""
    gc.collect()
    torch.cuda.empty_cache()  # what steps used before; the graph has a pool of its own
    graph = torch.cuda.CUDAGraph()
    # The loader's threads allocate and copy meanwhile: only this thread is held to the rules.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        figures = run()
    return figures, graph.replay


def beside(run: Callable[[], Tensor], stream: torch.cuda.Stream | None) -> Tensor:
    """Run on another stream, as a capture will, and have the present one wait for it."""
    if stream is None:
        return run()
    present = torch.cuda.current_stream()
    stream.wait_stream(present)
    with torch.cuda.stream(stream):
        figures = run()
    present.wait_stream(stream)
    figures.record_stream(present)
    return figures


class StepGraph:
    """Steps of one shape of batch; `forget` drops what a step that failed halfway has left."""

    def __init__(
        self,
        run: Run,
        device: torch.device,
        note: Callable[[str], None],
        forget: Callable[[], None] = lambda: None,
        capture: Capture = cuda_capture,
    ) -> None:
        self.run, self.device, self.note, self.forget = run, device, note, forget
        self.capture: Capture | None = capture
        self.batch: Batch | None = None
        """Buffers that a captured step reads."""
        self.captured: Captured | None = None
        self.steps = 0
        # One for all: the allocator keeps what each stream has used apart.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def fits(self, batch: Batch) -> bool:
        """Whether a batch is like the first; a line where it is not, which ends capturing."""
        if self.capture is None:
            return False
        if self.batch is None or shapes_of(batch) == shapes_of(self.batch):
            return True
        self.give_up(f"the batches' shapes change, to {shapes_of(batch)['image']}")
        return False

    def give_up(self, reason: str) -> None:
        """Steps are launched kernel by kernel from here on."""
        self.capture = self.captured = self.batch = None
        self.note(f"steps are not repeated as one CUDA graph: {reason}")

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """One step on a batch that fits: its figures, which later steps leave alone."""
        static = self._filled(batch)
        self.steps += 1
        if self.captured is None and self.steps > WARMUP:
            self._capture(static)
        if self.captured is None:
            names: list[str] = []
            found = beside(lambda: packed(self.run(static), names), self._stream)
            return unpacked(found, names)
        self.captured.replay()
        return unpacked(self.captured.figures.clone(), self.captured.names)

    def _filled(self, batch: Batch) -> Batch:
        """The buffers with a batch in them; what no step reads is the batch's own."""
        if self.batch is None:
            kept = {name: getattr(batch, name) for name in ON_DEVICE}
            self.batch = dataclasses.replace(
                batch, **{n: t if t is None else t.to(self.device).clone() for n, t in kept.items()}
            )
            return self.batch
        for name in ON_DEVICE:
            into = getattr(self.batch, name)
            if into is not None:
                into.copy_(getattr(batch, name), non_blocking=True)
        return self.batch

    def _capture(self, static: Batch) -> None:
        assert self.capture is not None
        names: list[str] = []
        try:
            figures, replay = self.capture(lambda: packed(self.run(static), names))
        except RuntimeError as error:  # what CUDA says of a call that waits, or of memory
            self.forget()
            self.give_up(f"capturing failed ({first_line(error)[:200]})")
            return
        self.captured = Captured(replay, figures, tuple(names))


def shapes_of(batch: Batch) -> dict[str, tuple[int, ...] | None]:
    """Shapes of what a step reads."""
    tensors = {name: getattr(batch, name) for name in ON_DEVICE}
    return {name: None if t is None else tuple(t.shape) for name, t in tensors.items()}


def packed(figures: dict[str, Tensor], names: list[str]) -> Tensor:
    """Figures as one vector, and their names added to a list."""
    names.extend(figures)
    return torch.stack([figure.detach().float() for figure in figures.values()])


def unpacked(figures: Tensor, names: list[str] | tuple[str, ...]) -> dict[str, Tensor]:
    """The same by name."""
    return dict(zip(names, figures.unbind(), strict=True))
