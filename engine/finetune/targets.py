"""The table of what is to be learned of each subject: classes or numbers, read with suspicion.

What can be mended without a guess is mended and told; what cannot is refused, naming the line.
"""

import csv
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.splits import few

MISSING = {"", "na", "n/a", "nan"}
"""What stands, in any case, where there is no target."""
NUMBERS_FOR_NONE = ("-9", "-99", "-999", "-9999", "999", "9999")
WORDS_FOR_NONE = "unknown unk none null nil missing undefined n.a. ? - -- ."
PERHAPS_MISSING = frozenset((*WORDS_FOR_NONE.split(), *NUMBERS_FOR_NONE))
"""What may stand, in any case, for no target, and would be a class like any other."""
DELIMITERS = ",;\t"
FEW_NUMBERS = 5
"""So many different numbers can be classes of any cohort, more only of a large one."""
MANY_NUMBERS = 20
"""More different numbers than these are no classes."""
FAR = 3
"""Times the largest other number, and 999 is none."""
BINS = 4
"""Quantiles by which subjects with numbers are dealt."""


@dataclass(frozen=True)
class Target:
    """One row: a subject, its target as it stands there without spaces, and the line."""

    subject: str
    text: str
    line: int


@dataclass(frozen=True)
class Targets:
    """Class of each subject that has one."""

    by_subject: Mapping[str, str]
    notes: tuple[str, ...] = ()
    """What was mended or left out."""
    doubts: tuple[str, ...] = ()
    """Classes that may be none."""

    @property
    def names(self) -> list[str]:
        """Classes in the order of their numbers: by size where all are numbers, else by letters."""
        return in_order(set(self.by_subject.values()))


@dataclass(frozen=True)
class Values:
    """Number of each subject that has one."""

    by_subject: Mapping[str, float]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    """Numbers that may be none."""

    def bins(self) -> dict[str, str]:
        """Quantile of each subject's number, to deal subjects by."""
        ordered = sorted(self.by_subject, key=lambda subject: (self.by_subject[subject], subject))
        return {
            subject: f"quantile {i * BINS // len(ordered) + 1}" for i, subject in enumerate(ordered)
        }


def read_targets(file: Path) -> Targets:
    """Classes from a CSV with the columns subject and target; ConfigError where they are none."""
    rows, notes = read_rows(file)
    found = {row.subject: row.text for row in rows}
    refuse_look_alikes(file, found.values())
    if len(set(found.values())) < 2:
        raise ConfigError(
            f"{file}: all targets are {next(iter(found.values()))!r}; two classes are needed"
        )
    refuse_continuous(file, found.values())
    counts = Counter(found.values())
    notes += [
        f"class {name!r} has one subject in {file.name}: it is either trained on or scored"
        for name in in_order(counts)
        if counts[name] == 1
    ]
    return Targets(found, tuple(notes), tuple(perhaps_missing(file, found)))


def perhaps_missing(file: Path, targets: Mapping[str, str]) -> list[str]:
    """A line for each class whose name is often written where nothing is known."""
    found: dict[str, list[str]] = {}
    for subject, text in targets.items():
        if text.casefold() in PERHAPS_MISSING:
            found.setdefault(text, []).append(subject)
    return [
        f"class {text!r} of {file.name} may mean that nothing is known ({few(subjects)}): leave "
        f"those targets empty; if it is a class, call it otherwise, such as 'is {text}'"
        for text, subjects in found.items()
    ]


def perhaps_no_number(file: Path, rows: Sequence[Target]) -> list[str]:
    """A line for each number that is often written where nothing is known, and lies by itself."""
    found: dict[str, list[str]] = {}
    others = [float(row.text) for row in rows if row.text not in NUMBERS_FOR_NONE]
    for row in rows:
        value = float(row.text)
        alone = bool(others) and (value < 0 <= min(others) or value > FAR * max(map(abs, others)))
        if row.text in NUMBERS_FOR_NONE and alone:
            found.setdefault(row.text, []).append(row.subject)
    return [
        f"target {text} of {file.name} may mean that nothing is known ({few(subjects)}), and lies "
        f"apart from the others: leave those targets empty; if it is meant, write {text}.0"
        for text, subjects in found.items()
    ]


def called_otherwise(
    file: str, subjects: Collection[str], known: Collection[str], corpus: str
) -> list[str]:
    """A line where subjects of a table are those of the corpus but for capitals or spaces, so that
    their targets are lost."""
    lacking = set(known) - set(subjects)
    plain = {"".join(name.split()).casefold(): name for name in lacking}
    pairs = [
        (name, plain[key])
        for name in sorted(set(subjects) - set(known))
        if (key := "".join(name.split()).casefold()) in plain
    ]
    if not pairs:
        return []
    name, other = pairs[0]
    return [
        f"{len(pairs)} subjects of {file} are in {corpus} but for capitals or spaces, and so have "
        f"no target (such as {name!r}, there {other!r}): write them as the corpus does"
    ]


def read_values(file: Path) -> Values:
    """Numbers from the same kind of table; ConfigError where a target is none."""
    rows, notes = read_rows(file)
    for row in rows:
        if number(row.text) is None:
            raise ConfigError(
                f"{file}, line {row.line}: target {row.text!r} of subject {row.subject!r} is no "
                "number, which head regress learns: correct it or leave it empty, or set --head "
                "classify"
            )
    found = {row.subject: float(row.text) for row in rows}
    if len(set(found.values())) < 2:
        raise ConfigError(f"{file}: all targets are {rows[0].text}: there is nothing to learn")
    return Values(found, tuple(notes), tuple(perhaps_no_number(file, rows)))


def read_rows(file: Path) -> tuple[list[Target], list[str]]:
    """A row for each subject that has a target, and what was mended on the way."""
    header, lines = read_table(file)
    columns = [name.strip().lower() for name in header]
    if columns.count("subject") != 1 or columns.count("target") != 1:
        raise ConfigError(
            f"{file}: needs a header with the columns subject and target, once each, and rows; it "
            f"has {', '.join(map(repr, header)) or 'nothing'}"
        )
    places = columns.index("subject"), columns.index("target")
    rows: list[Target] = []
    padded = 0
    for line, cells in lines:
        subject, target = (cells[i] if i < len(cells) else "" for i in places)
        padded += (subject, target) != (subject.strip(), target.strip())
        if not subject.strip() and target.strip():
            raise ConfigError(f"{file}, line {line}: target {target!r} has no subject: name it")
        rows.append(Target(subject.strip(), target.strip(), line))
    notes = [f"spaces around {padded} entries of {file.name} are left away"] * bool(padded)
    given = [row for row in rows if row.subject and row.text.lower() not in MISSING]
    lacking = [row.subject for row in rows if row.subject and row.text.lower() in MISSING]
    if lacking:
        notes.append(f"{len(lacking)} subjects of {file.name} have no target: {few(lacking)}")
    if not given:
        raise ConfigError(f"{file}: no subject has a target")
    return without_repetition(file, given, notes), notes


def read_table(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and rows with their line numbers; commas, semicolons or tabs, as the header has."""
    try:
        # utf-8-sig: Excel puts a byte-order mark before the first column's name.
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 ({error.reason}): save it as CSV UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}: name another file") from None
    first = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    return (rows[0][1], rows[1:]) if rows else ([], [])


def without_repetition(file: Path, rows: Sequence[Target], notes: list[str]) -> list[Target]:
    """Each subject once; ConfigError where it has two targets."""
    kept: dict[str, Target] = {}
    for row in rows:
        before = kept.setdefault(row.subject, row)
        if before.text != row.text:
            raise ConfigError(
                f"{file}: subject {row.subject!r} has target {before.text!r} on line {before.line} "
                f"and {row.text!r} on line {row.line}: keep one of them"
            )
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept)} rows of {file.name} say again what another says")
    return list(kept.values())


def refuse_look_alikes(file: Path, classes: Iterable[str]) -> None:
    """A ConfigError where two classes are one but for capital letters or inner spaces."""
    seen: dict[str, str] = {}
    for name in sorted(set(classes)):
        plain = "".join(name.split()).casefold()
        other = seen.setdefault(plain, name)
        if other != name:
            raise ConfigError(
                f"{file}: classes {other!r} and {name!r} differ in capitals or spaces alone: write "
                "one of them"
            )


def refuse_continuous(file: Path, texts: Iterable[str]) -> None:
    """A ConfigError where targets are numbers of which there are too many to be classes."""
    given = list(texts)
    numbers = {number(text) for text in given}
    most = max(FEW_NUMBERS, min(MANY_NUMBERS, len(given) // 4))
    if None not in numbers and len(numbers) > most:
        raise ConfigError(
            f"{file}: {len(numbers)} different numbers for {len(given)} subjects are no classes: "
            "set --head regress to learn them as they are, or write ranges (60-70) for them"
        )


def number(text: str) -> float | None:
    """The finite number that a text is, else None."""
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def in_order(names: Iterable[str]) -> list[str]:
    """Names by size where all are numbers, else by letters."""
    found = sorted(names)
    if all(number(name) is not None for name in found):
        return sorted(found, key=float)
    return found
