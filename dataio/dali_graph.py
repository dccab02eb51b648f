"""The DALI graph from host buffers to augmented crops; the same for CPU (device None) and GPU.

Parameters of every augmentation arrive as inputs, so the graph holds no random state and a new
graph continues exactly where another stopped.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mim3d.dataio.augment import ViewDraws
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.graph_spec import GraphSpec

RANKS = {"roi_start": 1, "roi_end": 1, "matrix": 2}
FLAGS = {"resized", "turn_z", "turn_y", "turn_x", "blurred"}
Feed = Callable[[int], list[np.ndarray]]


class DaliGraph:
    """A built pipeline; `run()` returns the tensors of the next batch, `feed` supplies it.

    `feed(iteration)` returns the image (b, c, z, y, x) float32, the label (b, z, y, x) if any,
    then per view the arrays of `spec.parameters`, as `feed_order` puts them.
    """

    def __init__(self, spec: GraphSpec, feed: Feed) -> None:
        self.spec = spec
        self._pipeline: Any = _build(spec, feed)

    def run(self) -> list[torch.Tensor]:
        """Outputs of the next iteration by DLPack: one image per view, then the label if any.

        The tensors own their memory: DALI's executor reuses a buffer only when nobody holds it.
        """
        if self._pipeline is None:
            raise RuntimeError("this loader is closed")
        return [torch.from_dlpack(out.as_tensor()) for out in self._pipeline.run()]

    def close(self) -> None:
        """Stop DALI's threads; tensors handed over stay valid."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline._shutdown()


def feed_order(
    spec: GraphSpec, image: np.ndarray, label: np.ndarray | None, views: list[ViewDraws]
) -> list[np.ndarray]:
    """Arrays of one iteration in the order in which the graph takes them."""
    arrays = [image] if label is None else [image, label]
    return arrays + [getattr(view, name) for view in views for name in spec.parameters]


def _build(spec: GraphSpec, feed: Feed) -> Any:
    try:
        dali: Any = importlib.import_module("nvidia.dali")
    except ImportError as error:
        raise Mim3dError(
            "the loader runs on NVIDIA DALI, which is not installed: pip install 'mim3d[cuda13]' "
            "(or [cuda12] for older drivers; both run on a CPU as well)"
        ) from error
    from mim3d.dataio.dali_ops import label_of, view_of

    inputs = _inputs(spec)
    pipeline = dali.Pipeline(
        batch_size=spec.batch,
        num_threads=spec.threads,
        device_id=spec.device_id,
        prefetch_queue_depth=2,
    )
    with pipeline:
        nodes = list(
            dali.fn.external_source(
                source=feed, num_outputs=len(inputs["ndim"]), batch=True, **inputs
            )
        )
        image = nodes.pop(0)
        label = nodes.pop(0) if spec.label_dtype else None
        if spec.device_id is not None:
            image, label = image.gpu(), None if label is None else label.gpu()
        n = len(spec.parameters)
        given = [
            dict(zip(spec.parameters, nodes[i * n : (i + 1) * n], strict=True))
            for i in range(spec.views)
        ]
        outputs = [view_of(spec, image, each) for each in given]
        if label is not None:
            outputs.append(label_of(spec, label, given[0]))
        pipeline.set_outputs(*outputs)
    pipeline.build()
    return pipeline


def _inputs(spec: GraphSpec) -> dict[str, list[Any]]:
    """Layout, dtype and number of dimensions of each input."""
    types: Any = importlib.import_module("nvidia.dali.types")
    layouts, dtypes, ranks = ["CDHW"], [types.FLOAT], [4]
    if spec.label_dtype:
        layouts.append("DHW")
        dtypes.append(types.to_dali_type(spec.label_dtype))
        ranks.append(3)
    for name in spec.parameters * spec.views:
        layouts.append("")
        dtypes.append(types.BOOL if name in FLAGS else types.FLOAT)
        ranks.append(RANKS.get(name, 0))
    return {"layout": layouts, "dtype": dtypes, "ndim": ranks}
