"""How the scans were read that a network knows: all that a new scan must go through to be alike."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.corpus.root import conversion_of
from mim3d.dataio.geometry import Triple
from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.errors import CheckpointError
from mim3d.engine.runs.plain import rebuilt

Spacing = tuple[float, float, float]
FAR = 1.5
"""A voxel this many times larger or smaller than any that was learned from is remarked."""
ENOUGH = 0.75
"""Of the fewest voxels learned from, along an axis; a scan with less is remarked."""


@dataclass(frozen=True)
class ScanRecipe:
    """The conversion of the corpus, how intensities are scaled, and what its volumes were like.

    `smallest_mm` and `largest_mm` are the voxel sides (z, y, x) that were learned from, and
    `smallest_shape` the fewest voxels along each axis; None where an earlier version kept none.
    """

    conversion: Conversion
    normalise: str
    channels: int
    channel_names: tuple[str, ...] = ()
    smallest_mm: Spacing | None = None
    largest_mm: Spacing | None = None
    smallest_shape: Triple | None = None

    def plain(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {**asdict(self), "conversion": self.conversion.attributes()}

    def spacing_doubt(self, spacing_mm: Spacing) -> str:
        """What to say of voxels far from those that were learned from; empty where they are not."""
        if self.smallest_mm is None or self.largest_mm is None:
            return ""
        sides = zip(spacing_mm, self.smallest_mm, self.largest_mm, strict=True)
        if all(low / FAR <= side <= high * FAR for side, low, high in sides):
            return ""
        return (
            f"voxels of {sizes(spacing_mm)} mm (z, y, x), while those learned from are of "
            f"{sizes(self.smallest_mm)} to {sizes(self.largest_mm)}: do not count on it"
        )

    def size_doubt(self, shape: Triple, crop: Triple) -> str:
        """What to say of a scan that is smaller than a crop, and much smaller than any that was
        learned from: of those too there were crops with padding."""
        learned, share = (self.smallest_shape, ENOUGH) if self.smallest_shape else (crop, 1.0)
        sides = zip(shape, learned, crop, strict=True)
        if all(n >= share * min(few, side) for n, few, side in sides):
            return ""
        size, window = (" x ".join(map(str, each)) for each in (shape, crop))
        what = "one slice" if min(shape) == 1 else f"{size} voxels (z, y, x)"
        known = ", and much less than any learned from" if self.smallest_shape else ""
        return (
            f"{what}, less than the crop of {window} that the network sees at once{known}: the "
            "rest is padding, do not count on it"
        )


def sizes(spacing_mm: Spacing) -> str:
    """Voxel sides in words."""
    return " x ".join(f"{side:.3g}" for side in spacing_mm)


def scan_recipe(
    corpus: Corpus, normalise: str, channels: int, subjects: Sequence[str] | None = None
) -> ScanRecipe:
    """The recipe of a corpus, with the voxel sizes of its `subjects` (None: all)."""
    wanted = None if subjects is None else set(subjects)
    records = [r for r in corpus.records if wanted is None or r.subject in wanted]
    where = corpus.address or str(corpus.root)
    return ScanRecipe(
        conversion_of(corpus.attributes, where),
        normalise,
        channels,
        channel_names(records),
        *(ends(records) or (None, None)),
        smallest_shape(records),
    )


def channel_names(records: Sequence[VolumeRecord]) -> tuple[str, ...]:
    """Names of the channels where all volumes that name theirs name them alike."""
    found = {record.channel_names for record in records if record.channel_names}
    return found.pop() if len(found) == 1 else ()


def ends(records: Sequence[VolumeRecord]) -> tuple[Spacing, Spacing] | None:
    """The smallest and the largest voxel side along each axis."""
    if not records:
        return None
    z, y, x = zip(*(record.spacing_mm for record in records), strict=True)
    return (min(z), min(y), min(x)), (max(z), max(y), max(x))


def smallest_shape(records: Sequence[VolumeRecord]) -> Triple | None:
    """The fewest voxels along each axis."""
    if not records:
        return None
    z, y, x = zip(*(record.shape for record in records), strict=True)
    return min(z), min(y), min(x)


def read_scan_recipe(plain: Mapping[str, Any], where: str) -> ScanRecipe:
    """What `plain` gave; CheckpointError naming `where` if that is none."""
    try:
        conversion = conversion_of({"conversion": plain["conversion"]}, where)
        rest = {name: value for name, value in plain.items() if name != "conversion"}
        return rebuilt(ScanRecipe, {**rest, "conversion": conversion}, where)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{where} does not tell how scans were read ({error})") from error
