"""The DALI graph from host buffers to augmented crops on a GPU; on a CPU view_graph has its place.

It builds for a CPU too (device None), which tests compare with.

Parameters of every augmentation arrive as inputs, so the graph holds no random state and a new
graph continues exactly where another stopped.
"""

import importlib
from typing import Any

import torch

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.transforms.augment import ViewDraws
from mim3d.dataio.transforms.graph import Feed, GraphSpec

RANKS = {"roi_start": 1, "roi_end": 1, "matrix": 2}
FLAGS = {"resized", "turn_z", "turn_y", "turn_x", "blurred"}


class DaliGraph:
    """A built pipeline; `run()` returns the tensors of the next batch, `feed` supplies it.

    `feed(iteration)` returns the image (b, c, z, y, x) float32, the label (b, z, y, x) if any,
    then per view the arrays of `spec.parameters`, as `feed_order` puts them.
    """

    def __init__(self, spec: GraphSpec, feed: Feed) -> None:
        if spec.device_input and not spec.parameters:
            raise ValueError(f"nothing is left for DALI to do: DirectGraph is for {spec}")
        self.spec = spec
        self._pipeline: Any = _build(spec, feed)

    def run(self) -> list[torch.Tensor]:
        """Outputs of the next iteration by DLPack: one image per view, then the label if any.

        The tensors own their memory: DALI's executor reuses a buffer only when nobody holds it.
        """
        if self._pipeline is None:
            raise RuntimeError("this loader is closed")
        # Bound to torch's stream, outputs need no host sync and are freed in its order.
        on_gpu = self.spec.device_id is not None
        stream = torch.cuda.current_stream(self.spec.device_id) if on_gpu else None
        outputs = self._pipeline.run(stream)
        return [torch.from_dlpack(out.as_tensor()) for out in outputs]

    def close(self) -> None:
        """Stop DALI's threads; tensors handed over stay valid."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline._shutdown()


def feed_order(spec: GraphSpec, image: Any, label: Any, views: list[ViewDraws]) -> list[Any]:
    """Arrays of one iteration in the order in which the graph takes them."""
    arrays = [image] if label is None else [image, label]
    if not spec.device_input:
        # DALI would ask CUDA for the stream of a tensor, even of one on the host.
        arrays = [each.numpy() if isinstance(each, torch.Tensor) else each for each in arrays]
    return arrays + [getattr(view, name) for view in views for name in spec.parameters]


def _build(spec: GraphSpec, feed: Feed) -> Any:
    try:
        dali: Any = importlib.import_module("nvidia.dali")
    except ImportError as error:
        raise Mim3dError(
            "views on a GPU are made by NVIDIA DALI, which is not installed: pip install "
            "'mim3d[cuda13]' (or [cuda12] for older drivers); device='cpu' does without"
        ) from error
    from mim3d.dataio.transforms.dali_ops import label_of, view_of

    inputs = _inputs(spec)
    pipeline = dali.Pipeline(
        batch_size=spec.batch,
        num_threads=spec.threads,
        device_id=spec.device_id,
        prefetch_queue_depth=2,
    )
    with pipeline:
        nodes = _sources(dali, spec, feed, inputs)
        image = nodes.pop(0)
        label = nodes.pop(0) if spec.label_dtype else None
        if spec.device_id is not None and not spec.device_input:
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


def _sources(dali: Any, spec: GraphSpec, feed: Feed, inputs: dict[str, list[Any]]) -> list[Any]:
    """Nodes of all inputs; image and label from the device where they are there already."""

    def source(device: str, part: slice, take: Feed) -> list[Any]:
        described = {name: values[part] for name, values in inputs.items()}
        n = len(described["ndim"])
        return list(
            dali.fn.external_source(
                source=take, num_outputs=n, batch=True, device=device, **described
            )
        )

    if not spec.device_input:
        return source("cpu", slice(None), feed)
    n_crops = 2 if spec.label_dtype else 1
    split = SplitFeed(feed, n_crops)
    return [
        *source("gpu", slice(n_crops), split.crops),
        *source("cpu", slice(n_crops, None), split.parameters),
    ]


class SplitFeed:
    """One feed seen as two: crops on the device and parameters on the host, in either order."""

    def __init__(self, feed: Feed, n_crops: int) -> None:
        self._feed, self._n = feed, n_crops
        self._half: dict[int, list[Any]] = {}

    def crops(self, iteration: int) -> list[Any]:
        """Image, and label if any, of an iteration."""
        return self._take(iteration)[: self._n]

    def parameters(self, iteration: int) -> list[Any]:
        """Everything else of it."""
        return self._take(iteration)[self._n :]

    def _take(self, iteration: int) -> list[Any]:
        known = self._half.pop(iteration, None)
        if known is None:
            known = self._half[iteration] = self._feed(iteration)
        return known


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
