"""Whether an encoder gets intensities of the scale that it was pretrained on."""

from collections.abc import Mapping
from typing import Any

from mim3d.engine.runs.encoder_file import STATISTICS
from mim3d.engine.transfer.given_weights import card_of


def intensity_mismatch(source: str, normalise: str) -> list[str]:
    """A line where the weights' card tells of another scale than `normalise`."""
    card = card_of(source)
    before = card.get("normalise")
    if before is None:
        return []
    if before == normalise:
        how = earlier_statistics(card) if "format" in card else ""
        return [
            f"{source} was pretrained by an earlier version, whose {before} had {how}: other "
            "intensities than it gets now; pretrain it again to have the same"
        ] * bool(how)
    return [
        f"{source} was pretrained with normalise {before} and is fine-tuned with {normalise}: "
        f"other intensities than it knows; --data.normalise {before} gives it those"
    ]


def earlier_statistics(card: Mapping[str, Any]) -> str:
    """In what the normalisation that an encoder was pretrained with differs from today's."""
    if card.get("statistics", 1) >= STATISTICS:
        return ""
    found = []
    if card["vit"].get("channels", 1) > 1 and card["normalise"] in ("zscore", "percentile"):
        found.append("the same statistics for all channels")
    if card["normalise"] == "clip-zscore":
        found.append("the mean and deviation of unclipped voxels")
    return " and ".join(found)
