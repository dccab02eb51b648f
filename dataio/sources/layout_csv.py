"""Layout `csv`: a table with a row per volume; paths are relative to its folder.

Columns: `image` (several channels: `image_0`, `image_1`, ...), and where there are such `label` or
`label:NAME`, `subject`, `group`, `split`, `id`. Comma, semicolon or tab; header in any case.
"""

import re

from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.nifti.names import stem
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.dataio.sources.subjects import named_by_path
from mim3d.dataio.sources.table import SUBJECT_COLUMNS, Row, read_table
from mim3d.dataio.sources.tree import Tree

ALIASES = {
    "image": ("image", "image_path", "img", "path", "file", "filename"),
    "label": ("label", "label_path", "seg", "segmentation", "mask"),
    "subject": SUBJECT_COLUMNS,
    "group": ("group", "site", "center", "dataset"),
    "split": ("split", "fold", "partition"),
    "id": ("id", "case", "case_id", "name"),
}


def find(tree: Tree, file: str) -> Discovery:
    """Sources of the table `file`; a row that names no readable image is skipped by number."""
    rows, columns = read_rows(tree, file)
    sources: list[Source] = []
    names: list[str] = []
    skipped: list[Rejection] = []
    for number, row in enumerate(rows, 2):  # line 1 is the header
        source = read_row(tree, row, columns, f"{tree.path(file)} line {number}", skipped)
        if source is not None:
            sources.append(source)
            names.append(row[columns["image"][0]])
    return Discovery(tuple(named_by_path(names, sources)), tuple(skipped), "csv")


def read_rows(tree: Tree, file: str) -> tuple[list[Row], dict[str, list[str]]]:
    """Rows as dicts and the columns of each role; SourceError without an image column."""
    rows, names = read_table(tree.read_text(file), tree.path(file))
    columns = {role: [a for a in known if a in names][:1] for role, known in ALIASES.items()}
    if not columns["image"]:
        columns["image"] = sorted(
            (n for n in names if re.fullmatch(r"image_\d+", n)), key=lambda n: int(n[6:])
        )
    if not columns["image"]:
        found = " ".join(", ".join(names).split()) or "(none)"
        detail = f"has no `image` column; its columns are {found}"
        raise SourceError("no-image-column", tree.path(file), detail)
    columns["label"] += [n for n in names if n.startswith("label:")]
    return rows, columns


def read_row(
    tree: Tree, row: Row, columns: dict[str, list[str]], where: str, skipped: list[Rejection]
) -> Source | None:
    """One source of a row, or None with the reason kept."""
    images = [row.get(column, "") for column in columns["image"]]
    if not any(row.values()):
        return None
    if not all(images):
        skipped.append(Rejection(where, "no-image", f"leaves `{columns['image'][0]}` empty"))
        return None
    absent = [i for i in images if not tree.has(i)]
    if absent:
        skipped.append(Rejection(tree.path(absent[0]), "missing-image", f"is not there ({where})"))
        return None
    labels = {}
    for column in columns["label"]:
        label, name = row.get(column, ""), column.partition(":")[2] or "seg"
        if label and name in labels:
            why = f"is a second label {name!r} ({where}); name its column `label:OTHER`"
            skipped.append(Rejection(tree.path(label), "ambiguous-label", why))
        elif label and tree.has(label):
            labels[name] = tree.path(label)
        elif label:
            skipped.append(Rejection(tree.path(label), "missing-label", f"is not there ({where})"))
    cells = {role: row.get(names[0], "") if names else "" for role, names in columns.items()}
    return Source(
        id=cells["id"] or stem(images[0]),
        images=tuple(tree.path(i) for i in images),
        labels=labels,
        subject=cells["subject"],
        group=cells["group"],
        split=cells["split"],
    )
