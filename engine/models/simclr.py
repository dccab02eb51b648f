"""SimCLR: two views of a crop attract, all other crops of the global batch repel."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import SimCLRConfig
from mim3d.engine.models.objective import Objective, StepOutput
from mim3d.engine.models.vit import initialise_linear
from mim3d.kernels.nt_xent import chance_level, nt_xent


class SimCLR(Objective):
    """Encoder to tokens (b, n, width), their mean, projection head, NT-Xent over all ranks' crops.

    The head normalises by layer, not by batch, so its output does not depend on how the global
    batch is spread over ranks. `group` holds the ranks whose crops are negatives.
    """

    def __init__(self, config: SimCLRConfig, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.projector = nn.Sequential(
            nn.Linear(width, config.projection_hidden),
            nn.LayerNorm(config.projection_hidden),
            nn.GELU(),
            nn.Linear(config.projection_hidden, config.projection_width),
        )
        self.projector.apply(initialise_linear)
        self.group: dist.ProcessGroup | None = None

    def forward(self, batch: Batch, share: float = 1.0, measure: bool = False) -> StepOutput:
        """NT-Xent of `batch.image` and `batch.second_view`, each (b, c, z, y, x).

        `share` is as for `MAE.forward`. Negatives come from one micro-batch of every rank.
        """
        if batch.second_view is None:
            raise ConfigError("SimCLR needs two views of each crop: set the loader's views to 2")
        views = torch.cat([batch.image, batch.second_view])
        first, second = self.project(views).float().chunk(2)
        world = self.world
        loss = nt_xent(first, second, self.config.temperature, group=self.group)
        # Every rank holds the global loss but only its own gradient: the value is shared out
        # among the ranks, the gradient is not.
        own = loss * (share * world)
        shared = own - own.detach() * (1.0 - 1.0 / world)
        return StepOutput(shared, self.baselines(batch) if measure else {})

    @property
    def world(self) -> int:
        """Ranks whose crops are negatives."""
        return dist.get_world_size(self.group) if dist.is_initialized() else 1

    def baselines(self, batch: Batch) -> dict[str, Tensor]:
        """Loss of features that say nothing; needs no weights."""
        chance = chance_level(self.world * batch.image.shape[0])
        return {"chance": torch.tensor(chance, device=batch.image.device)}

    def project(self, volume: Tensor) -> Tensor:
        """Features (b, projection_width) of volumes (b, c, z, y, x)."""
        return self.projector(self.encoder(volume).mean(1))
