"""`mim3d export RUN FORMAT DST`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.errors import ConfigError
from mim3d.engine.runs.address import place_text
from mim3d.engine.runs.config import Axes, Format

if TYPE_CHECKING:
    from mim3d.engine.runs.export import Exported
    from mim3d.engine.runs.hub import Hub

DESCRIPTION = """Write a pretrained encoder for other libraries.

safetensors keeps our names; monai-vit, monai-unetr and monai-swinunetr fit MONAI's ViT, UNETR and
SwinUNETR (load by the code in the Markdown card, which ends with an error where strict=False would
drop a tensor, or with mim3d.engine.runs.export.load_exported, which does the same).
nnunet is a checkpoint with adaptation plan (.pth) for nnUNetv2_preprocess_like_nnssl and
nnUNetv2_train_pretrained: a Primus of a published size and a U-Net with nnU-Net's own trainers (a
U-Net with its decoder by nnUNetv2_train -pretrained_weights too), a plain ViT with that of
examples/nnunet.
Two cards beside the weights, JSON and Markdown (Hugging Face's form), tell where they come from,
how a volume must be prepared, and how to build and load the network.
--push OWNER/NAME uploads all three to the Hugging Face Hub, the Markdown card as README.md. A
repository that it makes is private, unless --push-public says otherwise. The token is that of
HF_TOKEN or of `hf auth login`.
"""
TURNED = ("monai-unetr", "monai-vit")
"""Forms whose weights are turned to the x, y, z of MONAI's loaders, if nothing is said."""


@dataclass(frozen=True)
class ExportArgs:
    """What to export, as what, and where to."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a finished `mim3d pretrain`, or its encoder.safetensors; s3://BUCKET/RUN too."""
    format: tyro.conf.Positional[Format]
    """safetensors, monai-vit, monai-unetr, monai-swinunetr or nnunet."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """File to write, ending in .safetensors, for nnunet in .pth."""
    axes: Axes | None = None
    """Order of a volume's axes in the other library; xyz, as MONAI loads, for its ViT and UNETR."""
    push: str = ""
    """Repository of the Hugging Face Hub, OWNER/NAME, to upload the files to as well."""
    push_public: bool = False
    """Everybody may see the repository that --push makes; or it is there and public."""


def main(words: list[str]) -> Outcome:
    """Run the command."""
    args = parse(ExportArgs, words, "mim3d export", DESCRIPTION, addresses=("run",))
    from mim3d.dataio.storage.store import writing
    from mim3d.engine.runs.encoder_file import read_card
    from mim3d.engine.runs.export import export_encoder
    from mim3d.engine.transfer.reference_networks import unet_decoder

    hub = opened_hub(args)
    axes: Axes = args.axes or ("xyz" if args.format in TURNED else "zyx")
    unet = args.format == "nnunet" and read_card(args.run)[1]["kind"] == "resenc"
    decoder = unet_decoder(args.run) if unet else None
    if unet and decoder is None:
        print(
            f"{place_text(args.run)} has no checkpoint of the whole U-Net: its encoder goes alone"
        )
    with writing(args.target.parent):
        done = export_encoder(args.run, args.format, args.target, axes, decoder)
    print(f"{done.tensors} tensors in {done.weights}, cards {done.card} and {done.readme}")
    if done.must_set:
        named = ", ".join(f"{name}={value!r}" for name, value in done.must_set.items())
        print(
            f"build the network with {named}, or strict=False drops tensors silently; the code in "
            f"{done.readme.name} checks that none is lost"
        )
    figures = {"weights": str(done.weights), "tensors": done.tensors, "axes": axes}
    return Outcome({**figures, **(pushed(hub, done) if hub else {})})


def opened_hub(args: ExportArgs) -> "Hub | None":
    """Where the files go as well; refused before any of them is written."""
    if not args.push:
        if args.push_public:
            raise ConfigError("--push-public says nothing without --push OWNER/NAME")
        return None
    if args.format == "nnunet":
        raise ConfigError(
            f"--push {args.push}: nnunet's checkpoint is a pickle, which the Hub warns of; push "
            "the safetensors form"
        )
    from mim3d.engine.runs.hub import Hub

    return Hub(args.push, args.push_public)


def pushed(hub: "Hub", done: "Exported") -> dict[str, Any]:
    """Upload, and say where to and who can see it."""
    found = hub.push(done)
    print(f"pushed to {found.url}, {'private' if found.is_private else 'public'}")
    if found.readme_kept:
        print(f"the README.md there is not mim3d's and stays; the card is {done.readme.name}")
    return {"url": found.url, "private": found.is_private, "readme_kept": found.readme_kept}
