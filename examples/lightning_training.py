"""A LightningModule fed by mim3d, and a fit that goes on from Lightning's checkpoint exactly.

    python examples/lightning_training.py corpus.zarr --epochs 2

The loader goes to the Trainer as it is: with `epochs=1` it has a length, so Lightning reads no
batch ahead, and its state is kept in Lightning's own checkpoints, in the middle of an epoch too.
"""

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from mim3d import Loader, LoaderConfig
from mim3d.dataio.loader import Batch

CROP = (32, 32, 32)


class Denoiser(lightning.LightningModule):
    """A small network that takes noise out of crops; `seen` are the crops it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1), nn.GELU(), nn.Conv3d(8, 1, 3, padding=1)
        )
        self.seen: list[int] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Squared error; the noise follows from the batch's number, so that a resume repeats it."""
        self.seen += batch.sample.tolist()
        noise = torch.randn(batch.image.shape, generator=torch.Generator().manual_seed(batch.step))
        found = self.net(batch.image + noise.to(batch.image))
        return nn.functional.mse_loss(found, batch.image)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain AdamW."""
        return torch.optim.AdamW(self.parameters(), 1e-3)


def fit(corpus: str, checkpoint: Path | None = None, **options: Any) -> lightning.Trainer:
    """Train by a Trainer of these options, going on from `checkpoint` if it is given."""
    trainer = lightning.Trainer(enable_progress_bar=False, enable_model_summary=False, **options)
    config = LoaderConfig(crop_size=CROP, micro_batch=2, augment="mim")
    with Loader(
        corpus,
        config,
        epochs=1,
        rank=trainer.global_rank,
        world=trainer.world_size,
    ) as loader:
        trainer.fit(Denoiser(), loader, ckpt_path=checkpoint)
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", help="what `mim3d convert` wrote; s3://... works too")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path)
    args = parser.parse_args()
    done = fit(args.corpus, args.checkpoint, max_epochs=args.epochs)
    print(f"{done.global_step} steps, checkpoint {done.checkpoint_callback.best_model_path}")  # pyright: ignore
