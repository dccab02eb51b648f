"""The loader in a program that wants torch's DataLoader: passes with a length, resumed within one.

    python examples/torch_dataloader.py corpus.zarr --epochs 2 --state position.pt

`batch_size=None` because batches come whole, `num_workers=0` because the loader reads ahead by
itself: nothing is read that its state does not know of.
"""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from mim3d import Loader, LoaderConfig


def run(corpus: str, epochs: int, state: Path, stop_after: int | None = None) -> list[int]:
    """Numbers of the crops that passes up to the `epochs`th bring, going on from `state`."""
    seen: list[int] = []
    with Loader(corpus, LoaderConfig(crop_size=(32, 32, 32), micro_batch=2), epochs=1) as loader:
        if state.exists():
            loader.load_state_dict(torch.load(state, weights_only=True))
        guest = DataLoader(loader, batch_size=None, num_workers=0)
        while loader.state_dict()["step"] < epochs * len(guest):
            for batch in guest:
                seen += batch.sample.tolist()  # ... and train on batch.image
                torch.save(loader.state_dict(), state)
                if stop_after is not None and len(seen) >= stop_after:
                    return seen
    return seen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", help="what `mim3d convert` wrote; s3://... works too")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--state", type=Path, default=Path("position.pt"))
    args = parser.parse_args()
    print(f"{len(run(args.corpus, args.epochs, args.state))} crops")
