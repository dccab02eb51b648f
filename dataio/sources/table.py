"""A small table as people write it: comma, semicolon or tab, its header in any case."""

import csv
import io

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
    """Rows as dicts by column, names in small letters; SourceError bad-csv."""
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = [
            {
                k.strip().lower(): (v or "").strip()
                for k, v in r.items()
                if isinstance(k, str) and not isinstance(v, list)
            }
            for r in reader
        ]
        names = [n.strip().lower() for n in reader.fieldnames or []]
    except csv.Error as error:
        raise SourceError("bad-csv", where, f"is not a table ({error})") from error
    return rows, names
