"""What there is to say of a probe's corpus beside that which is pretrained on."""

from collections.abc import Sequence
from pathlib import Path

from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.probe.cohort import Cohort
from mim3d.engine.runs.scan_recipe import ScanRecipe, scan_recipe
from mim3d.engine.transfer.seen import few, seen_among

COMPARED = ("orientation", "spacing_mm", "window")
"""Parts of a conversion that change what an encoder sees."""


def probe_remarks(run: Path, trained: Corpus, cohort: Cohort, normalise: str) -> list[str]:
    """All of it; `run` is the folder that tells who is trained on."""
    return seen_lines(run, cohort) + likeness(trained, cohort, normalise)


def seen_lines(run: Path, cohort: Cohort) -> list[str]:
    """Loud lines where volumes of the probe are among those that are trained on."""
    by_file, by_name = seen_among(str(run), cohort.records(), cohort.subjects)
    n = len(cohort.subjects)
    lines = []
    if by_file:
        lines.append(
            f"{len(by_file)} OF {n} PROBE SUBJECTS ARE PRETRAINED ON: {few(by_file)}. Their scores "
            "flatter the encoder: keep them out of pretraining by --data.held-out-subjects, or "
            "probe others by --probe.corpus"
        )
    if by_name:
        lines.append(
            f"{len(by_name)} of {n} probe subjects bear names that are pretrained on, of other "
            f"files: {few(by_name)}. Are they the same people?"
        )
    return lines


def likeness(trained: Corpus, cohort: Cohort, normalise: str) -> list[str]:
    """Where the probe's volumes were converted otherwise, or have voxels far from the others'."""
    recipe = scan_recipe(trained, normalise, 1)
    other = scan_recipe(cohort.corpus, normalise, 1)
    lines = [
        f"the probe's corpus was converted with {name} {theirs}, that of pretraining with {ours}: "
        "scores suffer from it; convert it alike"
        for name in COMPARED
        if (ours := getattr(recipe.conversion, name)) != (theirs := getattr(other.conversion, name))
    ]
    return lines + voxel_doubt(recipe, cohort.records())


def voxel_doubt(recipe: ScanRecipe, records: Sequence[VolumeRecord]) -> list[str]:
    """A line for the first of the volumes whose voxels are far from those learned from."""
    found = [doubt for record in records if (doubt := recipe.spacing_doubt(record.spacing_mm))]
    return [f"probe: {len(found)} of {len(records)} volumes have {found[0]}"] if found else []
