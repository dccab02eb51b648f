"""`mim3d export RUN FORMAT DST`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.runs.config import Axes, Format

DESCRIPTION = """Write a pretrained encoder for other libraries.

safetensors keeps our names; monai-unetr and monai-swinunetr fit MONAI's UNETR and SwinUNETR
(load with strict=False, or with mim3d.engine.runs.export.load_exported, which checks the names).
nnunet is a checkpoint with adaptation plan (.pth) for nnUNetv2_preprocess_like_nnssl and
nnUNetv2_train_pretrained: a Primus of a published size and a U-Net with nnU-Net's own trainers (a
U-Net with its decoder by nnUNetv2_train -pretrained_weights too), a plain ViT with that of
examples/nnunet.
A JSON card beside the weights tells where they come from and how to build the network.
"""


@dataclass(frozen=True)
class ExportArgs:
    """What to export, as what, and where to."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a finished `mim3d pretrain`, or its encoder.safetensors."""
    format: tyro.conf.Positional[Format]
    """safetensors, monai-unetr, monai-swinunetr or nnunet."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """File to write, ending in .safetensors, for nnunet in .pth."""
    axes: Axes | None = None
    """Order of a volume's axes in the other library; xyz (MONAI's loaders) for monai-unetr."""


def main(words: list[str]) -> Outcome:
    """Run the command."""
    args = parse(ExportArgs, words, "mim3d export", DESCRIPTION)
    from mim3d.engine.runs.encoder_file import read_card
    from mim3d.engine.runs.export import export_encoder
    from mim3d.engine.transfer.reference_networks import unet_decoder

    axes: Axes = args.axes or ("xyz" if args.format == "monai-unetr" else "zyx")
    unet = args.format == "nnunet" and read_card(args.run)[1]["kind"] == "resenc"
    decoder = unet_decoder(args.run) if unet else None
    if unet and decoder is None:
        print(f"{args.run} has no checkpoint of the whole U-Net: its encoder goes alone")
    done = export_encoder(args.run, args.format, args.target, axes, decoder)
    print(f"{done.tensors} tensors in {done.weights}, card {done.card}")
    return Outcome({"weights": str(done.weights), "tensors": done.tensors, "axes": axes})
