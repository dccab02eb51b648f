"""One label out of a mask file per organ, by a map of organs to classes."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from mim3d.dataio.errors import SourceError
from mim3d.dataio.nifti.merged import merged_path


def read_label_map(file: str) -> dict[str, int]:
    """Classes by mask name, of a JSON object ({"liver": 1} or {"1": "liver"}) or a table of two
    columns (class and name in either order).

    SourceError bad-map where it is neither, or a class is no number of 1 to 65535 or told twice.
    """
    path = str(Path(file).expanduser())
    text = read_text(path)
    try:
        pairs = json_pairs(text) if path.lower().endswith(".json") else table_pairs(text)
        classes = dict(map(name_and_class, pairs))
    except (ValueError, TypeError, AttributeError) as error:
        problem = f'is no map of masks to classes, such as {{"liver": 1, "spleen": 2}} ({error})'
        raise SourceError("bad-map", path, problem) from error
    bad = [n for n, number in classes.items() if not 1 <= number <= 65535]
    if bad or not classes or len(set(classes.values())) < len(pairs):
        which = f"{bad[0]!r} has class {classes[bad[0]]}" if bad else "a name or class stands twice"
        problem = f"{which}; give every mask a class of its own, 1 to 65535"
        raise SourceError("bad-map", path, problem if classes else "names no mask")
    return classes


def read_text(path: str) -> str:
    """A text file that the user wrote; SourceError unreadable or not-text."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SourceError("unreadable", path, f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SourceError("not-text", path, "is not UTF-8 text; save it as UTF-8") from error


def json_pairs(text: str) -> list[tuple[str, str]]:
    """The members of a JSON object."""
    pairs = json.loads(text, object_pairs_hook=list)  # a dict would keep the last of two alike
    return [(str(key), str(value)) for key, value in pairs]


def table_pairs(text: str) -> list[tuple[str, str]]:
    """The first two columns of a table, its header left out."""
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(row)]
    pairs = [(row[0].strip(), row[1].strip()) for row in rows if len(row) > 1]
    is_header = bool(pairs) and not any(cell.isdigit() for cell in pairs[0])
    return pairs[1:] if is_header else pairs


def name_and_class(pair: tuple[str, str]) -> tuple[str, int]:
    """Name and class, whichever of a pair is the number."""
    first, second = pair
    return (second, int(first)) if first.isdigit() else (first, int(second))


def merge(labels: Mapping[str, str], classes: Mapping[str, int], name: str) -> dict[str, str]:
    """The labels with those that the map names as one; untouched where it names none of them."""
    parts = sorted((classes[organ], path) for organ, path in labels.items() if organ in classes)
    if not parts:
        return dict(labels)
    rest = {organ: path for organ, path in labels.items() if organ not in classes}
    return {**rest, name: merged_path(parts)}
