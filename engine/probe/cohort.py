"""Whom a probe asks: labelled subjects of its corpus, some to learn from, the others to score."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.reader.corpus import Corpus, opened_corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.splits import SplitConfig, few, make_splits
from mim3d.engine.finetune.targets import called_otherwise, read_targets
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.probe.config import FEWEST, ProbeConfig

MOSTLY = 0.5
"""Share of a crop that the largest volume must fill; the rest of it is padding."""


@dataclass(frozen=True)
class Volume:
    """A volume that is asked: its row in the corpus's table, and whether it is scored.

    `label` tells its patches' classes, or `target` is its own, by number.
    """

    row: int
    id: str
    subject: str
    is_scored: bool
    target: int = 0
    ignored: int | None = None
    """Value of the label that is no class."""


@dataclass(frozen=True)
class Cohort:
    """Volumes in the manifest's order, the classes that they or their patches may have, and what
    there is to say about them."""

    corpus: Corpus
    reader: ShardReader
    volumes: tuple[Volume, ...]
    classes: tuple[str, ...]
    """Names, by number; of patches the label's values, background first."""
    notes: tuple[str, ...]
    doubts: tuple[str, ...] = ()
    """What may be wrong with the classes."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """All that are asked."""
        return tuple(sorted({volume.subject for volume in self.volumes}))

    def count(self, is_scored: bool) -> int:
        """Subjects that are scored, or learned from."""
        return len({one.subject for one in self.volumes if one.is_scored == is_scored})

    def records(self) -> list[VolumeRecord]:
        """Manifest records of the volumes."""
        ids = {volume.id for volume in self.volumes}
        return [record for record in self.corpus.records if record.id in ids]


@contextmanager
def opened_cohort(config: ProbeConfig, vit: ViTConfig) -> Iterator[Cohort]:
    """The volumes of `config.corpus` that are asked; ConfigError where it cannot be probed on."""
    with opened_corpus(config.corpus) as (corpus, shards):
        reader = ShardReader(corpus.table, corpus.root, shards)
        if config.targets:
            yield of_targets(config, vit, corpus, reader)
        else:
            yield of_label(config, vit, corpus, reader)


def of_targets(config: ProbeConfig, vit: ViTConfig, corpus: Corpus, reader: ShardReader) -> Cohort:
    """Volumes with a class each, dealt class by class."""
    targets = read_targets(Path(config.targets))
    present = {record.subject for record in corpus.records}
    known = {name: k for name, k in targets.by_subject.items() if name in present}
    foreign = sorted(set(targets.by_subject) - present)
    if not known:
        raise ConfigError(
            f"probe.targets {config.targets} names no subject of {config.corpus}: it has "
            f"{few(foreign)}, the corpus {few(sorted(present))}: name them as the corpus does"
        )
    counts = Counter(known.values())
    rare = sorted(name for name in targets.names if counts[name] < FEWEST)
    if rare:
        raise ConfigError(
            f"probe.targets {config.targets}: class {rare[0]!r} has {counts[rare[0]]} of the "
            f"subjects of {config.corpus}, and {FEWEST} are needed, one to learn from and one to "
            "score: name more of them, or leave the class out of the table"
        )
    names = targets.names
    chosen = {name: known[name] for name in chosen_subjects(known, config)}
    records = [record for record in corpus.records if record.subject in chosen]
    scored = scored_subjects(config, records, chosen)
    learned = {chosen[name] for name in set(chosen) - scored}
    if lacking := sorted({chosen[name] for name in chosen} - learned):
        raise ConfigError(
            f"probe.test {config.test:g} leaves no subject of class {lacking[0]!r} to learn from: "
            "set a smaller --probe.test"
        )
    numbers = {name: number for number, name in enumerate(names)}
    volumes = [
        Volume(*place_of(corpus, record, scored), target=numbers[chosen[record.subject]])
        for record in records
    ]
    notes = [*targets.notes]
    if foreign:
        notes.append(f"{len(foreign)} subjects of the table are not in the corpus: {few(foreign)}")
    if unasked := sorted(present - set(known)):
        notes.append(f"{len(unasked)} subjects of {config.corpus} have no target: {few(unasked)}")
    doubts = [
        *targets.doubts,
        *called_otherwise(config.targets, targets.by_subject, present, config.corpus),
    ]
    return checked(config, vit, corpus, reader, (volumes, tuple(names), notes), doubts)


def of_label(config: ProbeConfig, vit: ViTConfig, corpus: Corpus, reader: ShardReader) -> Cohort:
    """Volumes whose patches have classes, told by a label."""
    labels = {
        record.id: label
        for record in corpus.records
        for label in record.labels
        if label.name == config.label
    }
    if not labels:
        others = sorted({label.name for record in corpus.records for label in record.labels})
        raise ConfigError(
            f"no volume of probe.corpus {config.corpus} has the label {config.label!r}; it has "
            f"{', '.join(others) or 'none'}: set --probe.label, or classes of volumes by "
            "--probe.targets FILE.csv"
        )
    values = sorted({k for label in labels.values() for k, n in label.classes.items() if n} | {0})
    if len(values) < 2:
        raise ConfigError(
            f"label {config.label!r} of probe.corpus {config.corpus} has one class only, "
            f"{values[0]}: name another by --probe.label"
        )
    records = [record for record in corpus.records if record.id in labels]
    subjects = sorted({record.subject for record in records})
    if len(subjects) < FEWEST:
        raise ConfigError(
            f"probe.corpus {config.corpus} has {len(subjects)} subject with the label "
            f"{config.label!r}, and {FEWEST} are needed, one to learn from and one to score: name "
            "a corpus of more by --probe.corpus"
        )
    chosen = set(chosen_subjects(dict.fromkeys(subjects, ""), config))
    records = [record for record in records if record.subject in chosen]
    scored = scored_subjects(config, records)
    volumes = [
        Volume(*place_of(corpus, record, scored), ignored=labels[record.id].ignore)
        for record in records
    ]
    doubts = unlearned(config, records, scored)
    return checked(config, vit, corpus, reader, (volumes, tuple(map(str, values)), []), doubts)


def unlearned(
    config: ProbeConfig, records: Sequence[VolumeRecord], scored: Collection[str]
) -> list[str]:
    """A line for each class of patches that is scored and that nothing is learned of."""
    has: dict[bool, set[int]] = {True: set(), False: set()}
    for record in records:
        for label in record.labels:
            if label.name == config.label:
                has[record.subject in scored] |= {k for k, n in label.classes.items() if n}
    return [
        f"class {k} of label {config.label!r} is in subjects that are scored and in none that is "
        "learned from, so it lowers the score: deal others by --probe.seed or --probe.test"
        for k in sorted(has[True] - has[False])
    ]


def scored_subjects(
    config: ProbeConfig, records: Sequence[VolumeRecord], classes: Mapping[str, str] | None = None
) -> set[str]:
    """A share `config.test` of the subjects, of each class where there are some."""
    split = SplitConfig(validation=config.test, test=0.0, seed=config.seed)
    try:
        return set(make_splits(records, config.label, split, classes).validation)
    except ConfigError as error:
        n = len({record.subject for record in records})
        raise ConfigError(
            f"probe.test {config.test:g} of {n} subjects of {config.corpus} leaves none to learn "
            "from: set a smaller --probe.test"
        ) from error


def place_of(
    corpus: Corpus, record: VolumeRecord, scored: Collection[str]
) -> tuple[int, str, str, bool]:
    """What a `Volume` begins with."""
    subject = record.subject
    return corpus.table.index(record.id), record.id, subject, subject in scored


def chosen_subjects(classes: Mapping[str, str], config: ProbeConfig) -> list[str]:
    """At most `config.subjects`, of each class as many as there can be, in the seed's order.

    ConfigError where these are too few for the classes.
    """
    by_class: dict[str, list[str]] = {}
    for subject in sorted(classes, key=lambda name: order(config.seed, name)):
        by_class.setdefault(classes[subject], []).append(subject)
    needed = FEWEST * len(by_class)
    if config.subjects < min(needed, len(classes)):
        raise ConfigError(
            f"probe.subjects {config.subjects} is too few for {len(by_class)} classes, of each of "
            f"which one subject is learned from and one is scored: set --probe.subjects {needed} "
            "or more"
        )
    turns = zip_longest(*(by_class[name] for name in sorted(by_class)))
    found = [subject for turn in turns for subject in turn if subject is not None]
    return found[: config.subjects]


def order(seed: int, name: str) -> bytes:
    """Where a subject stands among the others."""
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def checked(
    config: ProbeConfig,
    vit: ViTConfig,
    corpus: Corpus,
    reader: ShardReader,
    found: tuple[Sequence[Volume], tuple[str, ...], Sequence[str]],
    doubts: Sequence[str],
) -> Cohort:
    """The cohort, of volumes that the encoder can take."""
    volumes, classes, notes = found
    rows = [volume.row for volume in volumes]
    images = np.asarray(corpus.table.volumes["image"])[rows].astype(np.int64)
    channels = np.unique(np.asarray(corpus.table.arrays["channels"])[images]).tolist()
    if channels != [vit.channels]:
        raise ConfigError(
            f"volumes of probe.corpus {config.corpus} have {', '.join(map(str, channels))} "
            f"channels, and the encoder takes {vit.channels} (vit.channels): name a corpus of as "
            "many by --probe.corpus"
        )
    shapes = np.asarray(corpus.table.volumes["shape"])[rows]
    small = (shapes < np.array(vit.crop_size)).any(axis=1)
    filled = np.prod(np.minimum(shapes / np.array(vit.crop_size), 1.0), axis=1)
    if filled.max() < MOSTLY:
        largest = tuple(int(size) for size in shapes[filled.argmax()])
        raise ConfigError(
            f"no volume of probe.corpus {config.corpus} fills even half of a crop of vit.crop_size "
            f"{vit.crop_size}, the largest is {largest}: name a corpus of larger ones by "
            "--probe.corpus, or set a smaller --vit.crop-size"
        )
    padded = [f"{small.sum()} of {len(rows)} volumes are smaller than a crop, and padded"]
    notes = (*notes, *padded * bool(small.any()))
    return Cohort(corpus, reader, tuple(volumes), classes, notes, tuple(doubts))
