"""A small table as people write it: comma, semicolon or tab, its header in any case."""

import csv
import io
from itertools import zip_longest

from mim3d.dataio.errors import SourceError

SUBJECT_COLUMNS = (
    "subject",
    "subject_id",
    "patient",
    "patient_id",
    "participant_id",
    "participant",
)
TABLES = (".csv", ".tsv")
Row = dict[str, str]


def read_table(text: str, where: str) -> tuple[list[Row], list[str]]:
    """Rows as dicts by column, names in small letters; SourceError bad-csv, also where two columns
    of one name differ: which of them is meant nobody can tell."""
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    rows: list[Row] = []
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        names = [name.strip().lower() for name in next(lines, [])]
        for cells in filter(None, lines):
            row: Row = {}
            for name, cell in zip_longest(names, map(str.strip, cells[: len(names)]), fillvalue=""):
                if row.setdefault(name, cell) != cell and name:
                    detail = (
                        f"line {lines.line_num}: has two columns {name!r} that differ "
                        f"({row[name]!r} and {cell!r}): rename one, or remove it"
                    )
                    raise SourceError("bad-csv", where, detail)
            rows.append(row)
    except csv.Error as error:
        raise SourceError("bad-csv", where, f"is not a table ({error})") from error
    return rows, names
