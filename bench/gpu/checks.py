"""What a GPU machine must be able to do, each part once, on something tiny."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.bench.gpu.installed import found
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.native.extension import not_built
from mim3d.dataio.transforms.augment import ViewDraws, augmentation, draw_view
from mim3d.dataio.transforms.dali import DaliGraph, feed_order
from mim3d.dataio.transforms.graph import GraphSpec
from mim3d.engine.distributed.process_group import process_ranks
from mim3d.kernels.masking import patch_masks

CROP = (32, 48, 32)
BATCH = 4
LARGEST_ERROR = 1e-2  # of an image whose deviation is 1, resized and turned on two devices
ALIKE = 0.995  # of a label's voxels: a nearest voxel may be either of two
EVERY = replace(augmentation("segmentation"), rotate=1.0, zoom=1.0)


class AbsentError(Exception):
    """A part that is not installed: its stages are left out, or take another way."""


def checks(device: torch.device, folder: Path) -> dict[str, Callable[[], None]]:
    """Every check by name, the ones that others build on first."""
    return {
        "triton": partial(check_kernel, device),
        "inductor": partial(check_inductor, device),
        "process group": check_group,
        "loops in C": check_loops,
        "corpus": partial(check_corpus, folder),
        "decoding on the device": partial(check_decoding, device, folder),
        "crops from the host": partial(check_upload, device, folder),
        "turned crops": partial(check_turned, device, folder),
        "DALI": partial(check_dali, device),
    }


def check_kernel(device: torch.device) -> None:
    """A Triton kernel has the reference's bits."""
    sample = torch.arange(8)
    here, there = (patch_masks(5, sample.to(each), 216, 54) for each in ("cpu", device))
    if not torch.equal(here.visible_ids, there.visible_ids.cpu()):
        raise ValueError("masks differ from those of the CPU")


def check_inductor(device: torch.device) -> None:
    """torch.compile makes what eager makes."""
    ramp = torch.arange(1000.0, device=device)
    if device.type == "cuda":
        compiled = torch.compile(lambda x: (x * 2 + 1).sum())
        torch.testing.assert_close(compiled(ramp), (ramp * 2 + 1).sum())


def check_group() -> None:
    """A process group of one sums."""
    with process_ranks(60.0) as ranks:
        one = torch.ones(1, device=ranks.device)
        dist.all_reduce(one)
        if float(one) != 1:
            raise ValueError(f"the sum of 1 over one rank is {float(one)}")


def check_loops() -> None:
    """The loops in C are there: without them the loader's figures are numpy's."""
    if missing := not_built():
        raise ImportError(f"not built: {', '.join(missing)}")


def check_corpus(folder: Path) -> None:
    """NIfTI files become a corpus."""
    corpus_of(folder / "c.zarr", [anatomy_like((48, 64, 64), seed) for seed in range(3)])


def check_decoding(device: torch.device, folder: Path) -> None:
    """Crops decoded on the device, from chunks or from voxels that stay there, are the host's."""
    if device.type == "cuda" and not found("nvidia.libnvcomp"):
        raise AbsentError("no libnvcomp")
    for keeps in ("chunks", "voxels"):
        check_crops(device, folder, cache="device", device_keeps=keeps)


def check_upload(device: torch.device, folder: Path) -> None:
    """Crops that the host decoded arrive as they were, raw and in bfloat16."""
    for dtype in ("float32", "bfloat16"):
        check_crops(device, folder, cache="host", dtype=dtype)


def check_turned(device: torch.device, folder: Path) -> None:
    """Crops turned within their volumes, by the device's kernel, are those of the host's loop."""
    if device.type == "cuda" and not found("nvidia.libnvcomp"):
        raise AbsentError("no libnvcomp")
    check_crops(device, folder, "spatial", cache="device")


def check_crops(device: torch.device, folder: Path, augment: str = "mim", **options: Any) -> None:
    """Crops on the device are the bits of those on the host, while it is busy."""
    config = LoaderConfig(crop_size=CROP, micro_batch=BATCH, augment=augment, **options)
    plain = replace(config, cache="none")
    host, there = Loader(folder / "c.zarr", plain), Loader(folder / "c.zarr", config, device=device)
    work = torch.ones(1 << 26 if device.type == "cuda" else 1, device=device)
    with host, there:
        for number in range(6):
            work.mul_(1.0)
            if not torch.equal(next(host).image, next(there).image.cpu()):
                raise ValueError(
                    f"{augment} with {options}: batch {number} differs from the host's"
                )


def check_dali(device: torch.device) -> None:
    """The graph with most operators, on the device against the CPU."""
    if not found("nvidia.dali"):
        raise AbsentError("no DALI")
    drawn = draw_view(EVERY, np.arange(BATCH, dtype=np.uint64) + 11, 0, CROP)
    image = np.stack([anatomy_like(CROP, i, "float32")[None] for i in range(BATCH)])
    image = (image - image.mean()) / image.std()
    label = (image[:, 0] > 0.3).astype(np.uint8)
    (here, here_label), (there, there_label) = (
        run_graph(on, image, label, drawn) for on in (None, 0 if device.type == "cuda" else None)
    )
    worst = float((here - there).abs().max())
    alike = float((here_label == there_label).float().mean())
    if worst > LARGEST_ERROR or alike < ALIKE:
        raise ValueError(f"images differ by up to {worst:.3g}, {alike:.2%} of the labels agree")


def run_graph(
    device_id: int | None, image: np.ndarray, label: np.ndarray, drawn: ViewDraws
) -> list[torch.Tensor]:
    """One iteration of the graph, on the host afterwards."""
    spec = GraphSpec(BATCH, 1, CROP, 1, "uint8", EVERY, device_id, 1)
    graph = DaliGraph(spec, lambda _i: feed_order(spec, image, label, [drawn]))
    outputs = [each.cpu().clone() for each in graph.run()]
    graph.close()
    return outputs
