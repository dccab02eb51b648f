"""On a GPU: the DALI graph against the CPU's.

The first call for a DALI whose binaries were cut to one chip: where these fail, take the whole one.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mim3d.bench.corpora import anatomy_like
from mim3d.dataio.transforms.augment import AUGMENTATIONS, draw_view
from mim3d.dataio.transforms.dali import DaliGraph, feed_order
from mim3d.dataio.transforms.graph import GraphSpec

pytestmark = pytest.mark.gpu
SIZE = (24, 32, 40)
BATCH = 6
CLOSE = 1e-2  # of images whose deviation is 1
ALIKE = 0.995  # of labels: a nearest voxel may be either of two


@pytest.fixture(autouse=True)
def dali():
    pytest.importorskip("nvidia.dali")


def volumes(channels=1) -> np.ndarray:
    """Smooth images (b, c, z, y, x) with mean 0 and deviation 1."""
    made = np.stack(
        [
            np.stack([anatomy_like(SIZE, 5 * i + c, "float32") for c in range(channels)])
            for i in range(BATCH)
        ]
    )
    made = torch.nn.functional.avg_pool3d(torch.from_numpy(made), 3, 1, 1).numpy()
    return (made - made.mean()) / made.std()


@pytest.mark.parametrize("on_device", [False, True], ids=["from host", "from device"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", ["segmentation", "contrastive"])
def test_views_and_labels_are_the_cpus(name, channels, on_device):
    kind = replace(AUGMENTATIONS[name], rotate=1.0)
    kind = kind if kind.per_view else replace(kind, zoom=1.0)
    views = 2 if kind.per_view else 1
    image = volumes(channels)
    label = None if kind.per_view else (image[:, 0] > 0.3).astype(np.uint8)
    drawn = [draw_view(kind, np.arange(BATCH, dtype=np.uint64), i, SIZE) for i in range(views)]
    dtype = None if label is None else "uint8"
    spec = GraphSpec(BATCH, channels, SIZE, views, dtype, kind, None, 1)
    there = replace(spec, device_id=0, device_input=on_device)

    def moved(array: np.ndarray | None) -> torch.Tensor | None:
        return None if array is None else torch.from_numpy(array).cuda()

    given = (moved(image), moved(label)) if on_device else (image, label)
    wanted = ran(spec, image, label, drawn)
    for _ in range(3):
        got = ran(there, *given, drawn)
        for mine, theirs in zip(got[:views], wanted[:views], strict=True):
            assert mine.is_cuda
            assert (mine.cpu() - theirs).abs().max() < CLOSE
        if label is not None:
            assert (got[-1].cpu() == wanted[-1]).float().mean() > ALIKE


def ran(spec, image, label, drawn) -> list[torch.Tensor]:
    graph = DaliGraph(spec, lambda _i: feed_order(spec, image, label, drawn))
    outputs = [each.clone() for each in graph.run()]
    graph.close()
    return outputs


def test_outputs_are_whole_while_the_device_lags_behind():
    """Batches kept while slow work holds up torch's stream: no host sync hides a race."""
    spec = GraphSpec(BATCH, 1, SIZE, 1, None, AUGMENTATIONS["none"], 0, 1)
    graph = DaliGraph(spec, lambda i: [np.full((BATCH, 1, *SIZE), i, np.float32)])
    slow = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    kept = []
    for _ in range(20):
        slow.random_()
        kept.append(graph.run()[0] + 0)
    torch.cuda.synchronize()
    graph.close()
    for i, tensor in enumerate(kept):
        assert float(tensor.min()) == float(tensor.max()) == i
