"""The frozen encoder over the crops of a probe, on all ranks; the first one gets all features."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mim3d.dataio.corpus.chunk_table import label_arrays
from mim3d.dataio.geometry import Triple
from mim3d.dataio.reader.normalisation import intensities
from mim3d.engine.distributed.heartbeat import beat
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.volume_task import even_starts
from mim3d.engine.models.objective import Objective
from mim3d.engine.models.registry import EncoderShape
from mim3d.engine.models.resenc.config import ResEncConfig
from mim3d.engine.models.swin import STRIDE
from mim3d.engine.probe.cohort import Cohort, Volume
from mim3d.engine.probe.config import ProbeConfig
from mim3d.engine.probe.samples import (
    UNTOLD,
    Sample,
    drawing,
    patch_classes,
    patch_sample,
    some,
)
from mim3d.engine.probe.scores import Features

CROPS_AT_ONCE = 4
"""In one pass of the encoder; of one volume, so that nothing depends on the number of ranks."""
Part = tuple[int, np.ndarray, np.ndarray]
"""Number of a volume, and features (n, width) float32 and classes (n,) of it."""


@dataclass(frozen=True)
class Frozen:
    """Features to learn from and to be scored on, complete on the first rank."""

    train: Features
    scored: Features


@contextmanager
def undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluate a module and leave its modes, random numbers and compiled code as they were."""
    modes = {part: part.training for part in module.modules()}
    with ExitStack() as stack:
        devices = [device.index or 0] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.no_grad())
        # Other shapes would be compiled for; a few crops are not worth that.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        module.eval()
        try:
            yield
        finally:
            for part, training in modes.items():
                part.training = training


class Extractor:
    """Reads and encodes what a cohort is asked; this rank has every `world`-th volume."""

    def __init__(
        self, config: ProbeConfig, cohort: Cohort, shape: EncoderShape, normalise: str, ranks: Ranks
    ) -> None:
        self.config, self.cohort, self.shape, self.ranks = config, cohort, shape, ranks
        self.crop: Triple = shape.vit.crop_size
        rows = np.array([volume.row for volume in cohort.volumes])
        self.intensities = intensities(normalise, cohort.corpus.table, np.unique(rows))
        own = list(enumerate(cohort.volumes))[ranks.rank :: ranks.world]
        self.own = [(number, volume, self.sample(volume)) for number, volume in own]
        counts: list[list[int]] = [[]] * ranks.world
        mine = [len(sample.starts) for _, _, sample in self.own]
        dist.all_gather_object(counts, mine, group=ranks.control)
        passes = [[math.ceil(n / CROPS_AT_ONCE) for n in each] for each in counts]
        self.passes = [max(turn) for turn in zip_longest(*passes, fillvalue=0)]
        """Of the encoder, volume by volume of a rank: all take part in each under FSDP."""
        self.crops = sum(map(sum, counts))

    def sample(self, volume: Volume) -> Sample:
        """Crops and patches of a volume."""
        beat("choosing the crops of a probe")
        config, rng = self.config, drawing(self.config.seed, volume.id)
        covering = even_starts(self.padded(volume), self.crop)
        starts = [self.moved(start, volume) for start in covering]
        if config.targets:
            empty = np.empty(0, np.int64)
            return Sample(some(starts, config.windows, rng), empty, empty)
        cell = self.cell()
        row = int(label_arrays(self.cohort.corpus.table, config.label)[volume.row])
        values = np.array([int(name) for name in self.cohort.classes])

        def classes_at(start: Triple) -> np.ndarray:
            box = self.cohort.reader.read_box(row, start, self.crop, fill=0)[0].astype(np.int64)
            known = box if volume.ignored is None else np.where(box == volume.ignored, UNTOLD, box)
            inside = self.inside(start, volume)
            found = patch_classes(np.where(inside, known, UNTOLD), cell, config.foreground)
            return np.where(found == UNTOLD, UNTOLD, np.searchsorted(values, found))

        most = (config.windows, config.patches)
        return patch_sample(starts, classes_at, most, len(values), rng)

    def shape_of(self, volume: Volume) -> Triple:
        """Voxels of a volume."""
        z, y, x = (int(n) for n in self.cohort.corpus.table.volumes["shape"][volume.row])
        return z, y, x

    def padded(self, volume: Volume) -> Triple:
        """The same, at least a crop's."""
        z, y, x = (max(a, b) for a, b in zip(self.shape_of(volume), self.crop, strict=True))
        return z, y, x

    def moved(self, start: Triple, volume: Volume) -> Triple:
        """A first voxel of the padded volume, in the volume itself."""
        sizes = zip(start, self.padded(volume), self.shape_of(volume), strict=True)
        z, y, x = (first - (padded - size) // 2 for first, padded, size in sizes)
        return z, y, x

    def inside(self, start: Triple, volume: Volume) -> np.ndarray:
        """Which voxels of a crop lie in the volume, (z, y, x) bool."""
        axes = [
            (np.arange(first, first + edge) >= 0) & (np.arange(first, first + edge) < size)
            for first, edge, size in zip(start, self.crop, self.shape_of(volume), strict=True)
        ]
        z, y, x = axes
        return z[:, None, None] & y[None, :, None] & x[None, None, :]

    def cell(self) -> Triple:
        """Voxels of a token."""
        if self.shape.backbone is None:
            return self.shape.vit.patch_size
        deepest = self.shape.backbone
        edge = deepest.stride if isinstance(deepest, ResEncConfig) else STRIDE
        return edge, edge, edge

    def crops_of(self, volume: Volume, starts: Sequence[Triple]) -> Tensor:
        """Normalised crops (n, c, z, y, x)."""
        table = self.cohort.corpus.table
        image = int(table.volumes["image"][volume.row])
        fill = self.intensities.fills(volume.row)
        rescale = self.intensities.rescales(volume.row)
        boxes = [
            self.cohort.reader.read_box(image, start, self.crop, fill=fill, rescale=rescale)
            for start in starts
        ]
        return torch.from_numpy(np.stack(boxes)).to(self.ranks.device)

    def extract(self, module: Objective) -> Frozen | None:
        """All features, on the first rank; every rank takes part."""
        with undisturbed(module, self.ranks.device):
            parts = list(self.parts(module))
        gathered: list[list[Part]] = [[]] * self.ranks.world
        into = gathered if self.ranks.first else None
        dist.gather_object(parts, into, group=self.ranks.control, group_dst=0)
        if not self.ranks.first:
            return None
        ordered = sorted((part for each in gathered for part in each), key=lambda part: part[0])
        return Frozen(self.side(ordered, is_scored=False), self.side(ordered, is_scored=True))

    def parts(self, module: Objective) -> Iterator[Part]:
        """Features of this rank's volumes."""
        blank = torch.zeros(1, self.shape.vit.channels, *self.crop, device=self.ranks.device)
        for place, passes in enumerate(self.passes):
            own = self.own[place] if place < len(self.own) else None
            tokens = []
            for i_pass in range(passes):
                beat("probing the encoder")  # again, for those who watch for ranks that hang
                starts = own[2].starts[i_pass * CROPS_AT_ONCE :][:CROPS_AT_ONCE] if own else ()
                crops = self.crops_of(own[1], starts) if own and starts else blank
                found = module.encoder_tokens(crops).float()
                if starts:
                    tokens.append(found)
            if own is not None and tokens:
                number, volume, sample = own
                yield (number, *self.asked(torch.cat(tokens), volume, sample))

    def asked(
        self, tokens: Tensor, volume: Volume, sample: Sample
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features and classes of a volume's tokens (crops, n, width)."""
        if self.config.targets:
            return tokens.mean((0, 1))[None].cpu().numpy(), np.array([volume.target])
        expected = math.prod(c // e for c, e in zip(self.crop, self.cell(), strict=True))
        if tokens.shape[1] != expected:
            raise ConfigError(
                f"the encoder {self.shape.kind} gives {tokens.shape[1]} tokens of a crop, not one "
                f"of each of its {expected} patches: probe classes of whole volumes by "
                "--probe.targets FILE.csv"
            )
        chosen = torch.from_numpy(sample.patches).to(tokens.device)
        return tokens.flatten(0, 1)[chosen].cpu().numpy(), sample.classes

    def side(self, parts: Sequence[Part], is_scored: bool) -> Features:
        """What is learned from, or scored, on the device."""
        kept = [part for part in parts if self.cohort.volumes[part[0]].is_scored == is_scored]
        values = torch.from_numpy(np.concatenate([part[1] for part in kept]))
        classes = torch.from_numpy(np.concatenate([part[2] for part in kept]).astype(np.int64))
        device = self.ranks.device
        return Features(values.to(device, torch.float64), cast(Tensor, classes.to(device)))
