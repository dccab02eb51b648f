"""What tasks share that learn something of a whole volume from crops: mean token, linear layer."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from mim3d.dataio.geometry import Triple
from mim3d.dataio.loader.batch import Batch
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import Shards
from mim3d.dataio.reader.whole_volume import read_volume
from mim3d.engine.finetune.config import FinetuneConfig
from mim3d.engine.finetune.encoder import Encoder, build_encoder
from mim3d.engine.finetune.seeding import seeded
from mim3d.engine.finetune.task import Task


class PooledNet(nn.Module):
    """Volume (b, c, z, y, x) to (b, k): the mean of the encoder's tokens, one layer."""

    def __init__(self, encoder: Encoder, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = nn.Linear(encoder.config.width, outputs)

    def forward(self, volume: Tensor) -> Tensor:
        """Outputs of each crop."""
        return self.decoder(self.encoder(volume).mean(1))


class VolumeTask(Task):
    """Learns a number of each subject (a class's, or any) from crops of its volumes.

    `train` names the subjects that are trained on.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        corpus: Corpus,
        device: torch.device,
        shards: Shards | None = None,
        train: Sequence[str] = (),
    ) -> None:
        super().__init__(config, corpus, device, shards)
        of_subject, outputs = self.to_learn(Path(config.data.targets))
        table = corpus.table
        values = (of_subject.get(table.subject(row), math.nan) for row in range(table.n_volumes))
        self.by_row = torch.tensor(list(values), dtype=torch.float64)
        rows = [table.index(volume) for volume in self.volumes(train)]
        self.trained = self.by_row[rows]
        """Targets of the volumes that are trained on."""
        encoder = build_encoder(config, self.starts)
        with seeded(config.seed, "decoder"):
            self.net = self.make_net(encoder, outputs).to(device)

    @abstractmethod
    def to_learn(self, table: Path) -> tuple[Mapping[str, float], int]:
        """Number of each subject that the table of targets names, and outputs that tell it."""

    def make_net(self, encoder: Encoder, outputs: int) -> nn.Module:
        """The network, whose `decoder` is drawn now."""
        return PooledNet(encoder, outputs)

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Outputs (b, k) in float32 and targets (b,) of a batch, on the device."""
        # A copy that blocks would have every step wait for the device.
        target = self.by_row[batch.volume].to(self.device, torch.float32, non_blocking=True)
        return self.net(batch.image.to(self.device, self.dtype)).float(), target

    def volumes(self, subjects: Sequence[str]) -> list[str]:
        """Ids of the subjects' volumes that have a target."""
        wanted, table = set(subjects), self.corpus.table
        return [
            table.volume_id(row)
            for row in range(table.n_volumes)
            if table.subject(row) in wanted and not self.by_row[row].isnan()
        ]

    def outputs_of(self, net: nn.Module, volume: str) -> Tensor:
        """Outputs (n, k) in float32 for the windows of a whole volume."""
        row = self.corpus.table.index(volume)
        whole = read_volume(self.reader, row, None, self.config.data.normalise)
        image = torch.from_numpy(whole.image)
        return window_outputs(net, image, self.config.vit.crop_size, self.device)

    def target_of(self, volume: str) -> float:
        """What is to be learned of a volume."""
        return float(self.by_row[self.corpus.table.index(volume)])


@torch.no_grad()
def window_outputs(
    net: nn.Module, image: Tensor, crop_size: tuple[int, int, int], device: torch.device
) -> Tensor:
    """Outputs (n, k) in float32 for the windows of a volume (c, z, y, x)."""
    return net(windows(image, crop_size).to(device)).float()


def windows(image: Tensor, crop_size: tuple[int, int, int]) -> Tensor:
    """Crops (n, c, z, y, x) that cover a volume (c, z, y, x) evenly; small ones are padded."""
    pads: list[int] = []
    for have, want in zip(reversed(image.shape[1:]), reversed(crop_size), strict=True):
        short = max(want - have, 0)
        pads += [short // 2, short - short // 2]
    image = nn.functional.pad(image, pads, value=float(image.min()))
    z, y, x = image.shape[1:]
    crops = [
        image[:, z : z + crop_size[0], y : y + crop_size[1], x : x + crop_size[2]]
        for z, y, x in even_starts((z, y, x), crop_size)
    ]
    return torch.stack(crops)


def even_starts(shape: Triple, size: Triple) -> list[Triple]:
    """First voxels of the fewest windows of `size` that cover a volume of at least that, evenly."""
    starts = []
    for have, want in zip(shape, size, strict=True):
        count = math.ceil(have / want)
        starts.append([round(i * (have - want) / max(count - 1, 1)) for i in range(count)])
    return list(product(*starts))
