"""What batches will hold, drawn many at a time: numpy draws 256 in little more time than 8.

Every draw is a pure function of its sample's index, so how many are drawn together changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np

from mim3d.dataio.loader.crop_spec import CropJob
from mim3d.dataio.loader.sampler import Sampler, Samples
from mim3d.dataio.transforms.augment import ViewDraws, draw_flips, draw_placements, draw_view
from mim3d.dataio.transforms.placement import Placements

TOGETHER = 256  # samples
TOGETHER_ON_FOREGROUND = 64  # points are looked up sample by sample, and a step would wait for them
Arrays = TypeVar("Arrays", Samples, ViewDraws, Placements)


@dataclass(frozen=True)
class Drawn:
    """One batch: its samples, their flips (b, 3) bool, the parameters of each view, and where crops
    lie that are turned within their volumes (None: all as they are)."""

    samples: Samples
    flips: np.ndarray
    views: list[ViewDraws]
    placements: Placements | None


def draws(
    sampler: Sampler, job: CropJob, first: int, stride: int, count: int
) -> Callable[[int], Drawn]:
    """Batch k holds the `count` samples from global index `first + k * stride`."""
    most = TOGETHER_ON_FOREGROUND if sampler.foreground_fraction > 0 else TOGETHER
    together = max(1, most // count)
    known: dict[int, Drawn] = {}

    def block(number: int) -> Drawn:
        if number not in known:
            begins = first + (number * together + np.arange(together)) * stride
            samples = sampler.at((begins[:, None] + np.arange(count)).reshape(-1))
            seeds = samples.augment_seed
            flips = draw_flips(job.augmentation, seeds)
            views = [
                draw_view(job.augmentation, seeds, view, job.crop_size) for view in range(job.views)
            ]
            placements = draw_placements(
                *(job.augmentation, seeds, samples.start, job.crop_size, flips),
                job.volumes[samples.volume],
            )
            known.clear()
            known[number] = Drawn(samples, flips, views, placements)
        return known[number]

    def batch(number: int) -> Drawn:
        whole = block(number // together)
        begin = number % together * count
        part = slice(begin, begin + count)
        views = [_part(view, part) for view in whole.views]
        placements = None if whole.placements is None else _part(whole.placements, part)
        return Drawn(_part(whole.samples, part), whole.flips[part], views, placements)

    return batch


def _part(arrays: Arrays, part: slice) -> Arrays:
    return type(arrays)(*(getattr(arrays, field.name)[part] for field in fields(arrays)))
