"""Augmentation on a CPU, with the interface of DALI's graph: views made ahead by threads."""

import threading
from collections import deque
from functools import partial
from typing import Any

import numpy as np
import torch

from mim3d.dataio.loader.batch import add_artefacts
from mim3d.dataio.loader.buffer_pool import BufferPool
from mim3d.dataio.loader.read_threads import ReadThreads, Work
from mim3d.dataio.transforms.augment import ViewDraws
from mim3d.dataio.transforms.graph import Feed, GraphSpec
from mim3d.dataio.transforms.views import ViewMaker, ViewPlan, plans

AHEAD = 2
"""Batches under work or ready, as in DALI's queue."""
HELD = 4
"""Batches that a consumer holds at a time."""

Outputs = list[np.ndarray]


class ViewGraph:
    """`run()` returns the tensors of the next batch, `feed` supplies what they are made from.

    `feed(iteration)` returns the image (b, c, z, y, x) float32, the label (b, z, y, x) if any,
    then the ViewDraws of each view. Outputs are from pools that have them back when nobody holds
    them.
    """

    def __init__(self, spec: GraphSpec, feed: Feed) -> None:
        self.spec, self._feed = spec, feed
        self._fed = 0
        self._ahead: deque[tuple[Outputs, Work]] = deque()
        self._threads: ReadThreads | None = ReadThreads(spec.threads)
        self._own = threading.local()
        self._pools: dict[tuple[tuple[int, ...], str], BufferPool] = {}

    def run(self) -> list[torch.Tensor]:
        """Outputs of the next iteration: one image per view, then the label if any."""
        if self._threads is None:
            raise RuntimeError("this loader is closed")
        while len(self._ahead) < AHEAD:
            self._begin(self._threads)
        outputs, work = self._ahead.popleft()
        error = work.wait()
        if error is not None:
            raise error
        return [torch.from_numpy(array) for array in outputs]

    def close(self) -> None:
        """Stop the threads; tensors handed over stay valid."""
        threads, self._threads = self._threads, None
        for _, work in self._ahead:
            work.drop()
        self._ahead.clear()
        if threads is not None:
            threads.close()

    def _begin(self, threads: ReadThreads) -> None:
        """Have the views of one more batch made."""
        image, label, views = self._taken(self._feed(self._fed))
        self._fed += 1
        planned = [plans(view, self.spec.augmentation.per_view) for view in views]
        outputs = [self._buffer(image) for _ in views]
        calls = [
            partial(self._make_image, image[i], planned[view][i], outputs[view][i])
            for view in range(len(views))
            for i in range(len(image))
        ]
        if label is not None:
            turned = self._buffer(label)
            calls += [
                partial(self._make_label, label[i], planned[0][i], turned[i])
                for i in range(len(label))
            ]
            outputs.append(turned)
        self._ahead.append((outputs, threads.start(calls)))

    def _taken(self, fed: list[Any]) -> tuple[np.ndarray, np.ndarray | None, list[ViewDraws]]:
        image, *rest = fed
        label = rest.pop(0) if self.spec.label_dtype else None
        return _array(image), None if label is None else _array(label), rest

    def _buffer(self, like: np.ndarray) -> np.ndarray:
        key = like.shape, like.dtype.str
        if key not in self._pools:
            self._pools[key] = BufferPool(*key, self.spec.views * (AHEAD + HELD))
        return self._pools[key].take()

    def _maker(self) -> ViewMaker:
        """This thread's own."""
        if not hasattr(self._own, "maker"):
            self._own.maker = ViewMaker()
        return self._own.maker

    def _make_image(self, crop: np.ndarray, plan: ViewPlan, out: np.ndarray) -> None:
        self._maker().image(crop, plan, out)
        artefacts = self.spec.augmentation.artefacts
        if artefacts.possible:
            seeds = np.array([plan.seed], np.uint64)
            add_artefacts(torch.from_numpy(out)[None], seeds, artefacts)

    def _make_label(self, label: np.ndarray, plan: ViewPlan, out: np.ndarray) -> None:
        self._maker().label(label, plan, out)


def _array(given: Any) -> np.ndarray:
    return given.numpy() if isinstance(given, torch.Tensor) else given
