"""A plain MONAI training loop fed by mim3d: crops of a corpus into UNet with DiceCE.

    python examples/monai_training.py corpus.zarr --steps 200

The loader is an ordinary iterator of batches of tensors; nothing else of mim3d is needed. Its
state is a small dictionary to keep beside the model's: after a restart the run goes on with the
very next crop.
"""

import argparse
from itertools import islice
from pathlib import Path

import torch
from monai.losses.dice import DiceCELoss
from monai.networks.nets.unet import UNet

from mim3d import Loader, LoaderConfig


def train(corpus: str, steps: int, classes: int, checkpoint: Path | None = None) -> list[float]:
    """Train for `steps` steps, going on from `checkpoint` if it exists; the loss of each step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = LoaderConfig(
        crop_size=(32, 32, 32),
        micro_batch=4,
        label="seg",
        augment="segmentation",
        foreground_fraction=0.5,
    )
    model = UNet(3, 1, classes, channels=(8, 16, 32), strides=(2, 2)).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    losses: list[float] = []
    with Loader(corpus, config, device=device) as loader:
        if checkpoint is not None and checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            loader.load_state_dict(state["loader"])
        for batch in islice(loader, steps):
            assert batch.label is not None  # config.label asked for it
            loss = loss_of(model(batch.image), batch.label[:, None])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        if checkpoint is not None:
            state = {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "loader": loader.state_dict(),
            }
            torch.save(state, checkpoint)
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", help="what `mim3d convert` wrote; s3://... works too")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--classes", type=int, default=3, help="background included")
    parser.add_argument("--checkpoint", type=Path)
    args = parser.parse_args()
    done = train(args.corpus, args.steps, args.classes, args.checkpoint)
    course = f": loss {done[0]:.3f} -> {done[-1]:.3f}" if done else ""
    print(f"{len(done)} steps{course}")
