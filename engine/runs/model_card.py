"""A model card in Markdown: what an exported encoder is, was trained on, expects, and how it loads.

Its front matter is Hugging Face's, so the file serves as README.md of a repository there. The code
under "Load" is what the command prints too: it ends with an error where a tensor finds no place,
which `strict=False` alone would hide.
"""

from collections.abc import Mapping
from typing import Any

OWN = {
    "vit": "from mim3d import load_encoder\n\nencoder = load_encoder({file!r})",
    "swin": (
        "from mim3d.engine.runs.encoder_file import load_swin\n\nencoder = load_swin({file!r})"
    ),
    "resenc": (
        "from mim3d.engine.runs.encoder_file import load_resenc\n\nencoder = load_resenc({file!r})"
    ),
}
OWN["primus"] = OWN["vit"]
MUST = "must_set"
"""Field of a card: arguments without which the other library drops tensors or misplaces them."""


def model_card(card: Mapping[str, Any], file: str, repository: str = "") -> str:
    """The card of weights in `file`, from the fields of their JSON card.

    `repository` is that of the Hugging Face Hub which they are downloaded from, if they are.
    """
    parts = [front_matter(card), f"# {title(card)}", summary(card)]
    code = loading_code(card, file)
    if repository:
        code = downloaded(code, file, repository)
    sections = {
        "Load": f"```python\n{code}\n```\n\n{warnings(card)}",
        "Input": table(inputs(card)),
        "Training": table(training(card)),
        "Files": table({file: f"sha256 `{card.get('weights_sha256', 'unknown')}`"}),
    }
    parts += [f"## {name}\n\n{text.strip()}" for name, text in sections.items()]
    return "\n\n".join(parts) + "\n"


def front_matter(card: Mapping[str, Any]) -> str:
    """Metadata that a hub reads; no licence, which is the owner's to choose."""
    tags = ["medical-imaging", "3d", "self-supervised-learning", str(card.get("method", ""))]
    lines = ["---", "library_name: mim3d", "pipeline_tag: image-feature-extraction", "tags:"]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags if tag), "---"])


def title(card: Mapping[str, Any]) -> str:
    """What it is in one line."""
    kind = str(card.get("kind") or card.get("loads_into", "encoder")).rsplit(".", 1)[-1]
    return f"{kind} encoder for 3D medical volumes, pretrained by {card.get('method', 'mim3d')}"


def summary(card: Mapping[str, Any]) -> str:
    """A sentence of what made it."""
    return (
        f"Trained by mim3d {card.get('mim3d', '')} for {card.get('step', '?')} steps. Weights "
        "alone; the corpus is not part of this. Not a medical device, and not tested for use on "
        "patients."
    )


def loading_code(card: Mapping[str, Any], file: str) -> str:
    """Python that builds the network and loads the weights, or ends with an error."""
    target = str(card.get("loads_into", ""))
    if not target:
        return OWN[str(card.get("kind", "vit"))].format(file=file)
    if not target.startswith("monai."):
        return f"# {target}: see examples/nnunet of mim3d for the trainer that loads {file}"
    module, name = target.rsplit(".", 1)
    given = [f"{key}={plain(value)!r}" for key, value in card["arguments"].items()]
    given = ["out_channels=2", *given] if name in ("UNETR", "SwinUNETR") else given
    missing = card["expected_missing"]
    return (
        f"from fnmatch import fnmatch\n\nfrom {module} import {name}\n"
        "from safetensors.torch import load_file\n\n"
        f"network = {name}({', '.join(given)})\n"
        f"found = network.load_state_dict(load_file({file!r}), strict=False)\n"
        "assert not found.unexpected_keys, found.unexpected_keys\n"
        f"fresh = {missing!r}  # what was not pretrained\n"
        "lost = [k for k in found.missing_keys if not any(fnmatch(k, p) for p in fresh)]\n"
        "assert not lost, lost"
    )


def downloaded(code: str, file: str, repository: str) -> str:
    """The same code with the file taken from the Hub."""
    begin = "from huggingface_hub import snapshot_download\n\nfolder = snapshot_download"
    return f"{begin}({repository!r})\n" + code.replace(repr(file), "f" + repr(f"{{folder}}/{file}"))


def plain(value: object) -> object:
    """JSON's lists as tuples, which libraries expect."""
    return tuple(value) if isinstance(value, list) else value


def warnings(card: Mapping[str, Any]) -> str:
    """What the loading side must set, and what its volumes must be like."""
    lines = []
    if card.get(MUST):
        named = ", ".join(f"`{key}={value!r}`" for key, value in card[MUST].items())
        lines.append(
            f"The network must be built with {named}: otherwise `strict=False` drops tensors "
            "without a word. The assertions above say so."
        )
    if card.get("axes"):
        order = ", ".join(str(card["axes"]))
        lines.append(f"It expects volumes whose axes are {order}, in this order.")
    return "\n\n".join(lines)


def inputs(card: Mapping[str, Any]) -> dict[str, object]:
    """How a volume must be prepared."""
    vit, scans = card.get("vit") or {}, card.get("scans") or {}
    made = scans.get("conversion") or {}
    sides = (scans.get("smallest_mm"), scans.get("largest_mm"))
    found = {
        "channels": scans.get("channels", vit.get("channels")),
        "channel names": ", ".join(scans.get("channel_names") or ()),
        "crop (z, y, x)": shape_of(vit.get("crop_size")),
        "patch (z, y, x)": shape_of(vit.get("patch_size")),
        "orientation": made.get("orientation"),
        "resampled to (mm, z, y, x)": shape_of(made.get("spacing_mm")) or "kept as scanned",
        "voxel sides seen (mm, z, y, x)": " to ".join(shape_of(s) for s in sides if s),
        "intensity window": shape_of(made.get("window"), " to "),
        "normalisation": card.get("normalise"),
    }
    return {name: value for name, value in found.items() if value not in (None, "")}


def training(card: Mapping[str, Any]) -> dict[str, object]:
    """What it was trained on and how, as far as the card tells."""
    names = {
        "method": "method",
        "step": "steps",
        "corpus_sha256": "sha256 of the corpus's manifest",
        "config_sha256": "sha256 of the configuration",
        "statistics": "version of intensity statistics",
    }
    found = {label: card[name] for name, label in names.items() if card.get(name) is not None}
    start = card.get("start")
    if isinstance(start, Mapping):
        found["began with"] = start.get("source", "other weights")
    if card.get("history"):
        found["changed on the way"] = f"{len(card['history'])} times, see the JSON card"
    return found


def shape_of(values: object, between: str = " x ") -> str:
    """Numbers in words, empty for none."""
    if not isinstance(values, list | tuple):
        return ""
    return between.join(f"{value:.4g}" for value in values)


def table(rows: Mapping[str, object]) -> str:
    """Two columns of Markdown."""
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
