"""Layout `csv`: a table with a row per volume; paths are relative to its folder, or to --base.

Columns: `image` (several channels: `image_0`, `image_1`, ...), and where there are such `label` or
`label:NAME`, `subject`, `group`, `split`, `id`. A column called after a label (`lesion_mask`) is
one, a column called after a modality (`t2`) makes volumes of its own. Comma, semicolon or tab;
header in any case. What is not used is named.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.labels.words import is_label_word, label_key
from mim3d.dataio.nifti.names import is_image, stem
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.dataio.sources.subjects import named_by_path
from mim3d.dataio.sources.table import SUBJECT_COLUMNS, Row, read_table
from mim3d.dataio.sources.tree import Tree
from mim3d.dataio.subjects.words import words_of

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
    rows, columns, names = read_rows(tree, file)
    more = judge_columns(rows, columns, names)
    sources: list[Source] = []
    paths: list[str] = []
    skipped: list[Rejection] = []
    for number, row in enumerate(rows, 2):  # line 1 is the header
        where = f"{tree.path(file)} line {number}"
        for images in ([*columns["image"]], *([column] for column in more.images)):
            is_main = images == columns["image"]
            if not images or (not is_main and not row.get(images[0])):
                continue
            source = read_row(tree, row, columns | {"image": images}, where, skipped)
            if source is None:
                continue
            of_row = source if is_main else replace(source, id=f"{source.id}_{images[0]}")
            of_row = replace(of_row, channel_names=channel_words(images), visit=f"row {number}")
            sources.append(of_row)
            paths.append(row[images[0]])
    found = named_by_path(paths, sources)
    return Discovery(
        tuple(found), tuple(skipped), "csv", warnings=more.warnings(file), notes=more.notes(file)
    )


@dataclass
class MoreColumns:
    """Columns beside the known ones: of images, of paths nobody knows what of, and not used."""

    images: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def warnings(self, file: str) -> tuple[str, ...]:
        """A line where paths of images are in columns that say neither image nor label."""
        if not self.unclear:
            return ()
        problem = f"{file}: files in {in_columns(self.unclear)} are not used"
        return (f"{problem}: call a column image_1, label:NAME or after a modality, or remove it",)

    def notes(self, file: str) -> tuple[str, ...]:
        """A line for columns that are read in a way of their own, and for those that are not."""
        several = (
            f"{file}: {in_columns(self.images)} make volumes of their own (--channels stacks them)"
        )
        unused = f"{file}: {in_columns(self.unused)} not used"
        return tuple(note for note, any_ in ((several, self.images), (unused, self.unused)) if any_)


def in_columns(names: Sequence[str]) -> str:
    """`column age`, `columns age, sex`."""
    return f"column{'s' if len(names) > 1 else ''} {', '.join(names)}"


def judge_columns(
    rows: Sequence[Row], columns: dict[str, list[str]], names: Sequence[str]
) -> MoreColumns:
    """Sort out the columns that no role has; labels among them join `columns["label"]`."""
    used = {name for several in columns.values() for name in several}
    more = MoreColumns()
    for name in names:
        if not name or name in used:
            continue
        values = [row[name] for row in rows if row.get(name)]
        if not values or 2 * sum(map(is_image, values)) < len(values):
            more.unused.append(name)
        elif is_label_word(re.split("[_ :-]", name)[-1]) or is_label_word(name):
            columns["label"].append(name)
        elif is_modality(name):
            more.images.append(name)
        else:
            more.unclear.append(name)
    return more


def is_modality(name: str) -> bool:
    """Whether every word of a column's name tells an image: `t2`, `image_flair`, `ct_path`."""
    words = words_of(name.replace(" ", "_"))
    plain = {"path", "file", "image", "img", "scan", "volume"}
    return any(word.role == "kind" for word in words) and all(
        word.role == "kind" or word.text.lower() in plain for word in words
    )


def channel_words(columns: Sequence[str]) -> tuple[str, ...]:
    """Names of channels by their columns, where these tell modalities."""
    words = tuple(column.removeprefix("image_") for column in columns)
    return words if all(map(is_modality, words)) else ()


def read_rows(tree: Tree, file: str) -> tuple[list[Row], dict[str, list[str]], list[str]]:
    """Rows as dicts, the columns of each role, and all; SourceError without an image column."""
    rows, names = read_table(tree.read_text(file), tree.path(file))
    columns = {role: [a for a in known if a in names][:1] for role, known in ALIASES.items()}
    if not columns["image"]:
        columns["image"] = sorted(
            (n for n in names if re.fullmatch(r"image_\d+", n)), key=lambda n: int(n[6:])
        )
    if not columns["image"] and not any(map(is_modality, names)):
        found = " ".join(", ".join(names).split()) or "(none)"
        detail = f"has no `image` column; its columns are {found}"
        raise SourceError("no-image-column", tree.path(file), detail)
    columns["label"] += [n for n in names if n.startswith("label:")]
    return rows, columns, names


def label_of(column: str) -> str:
    """Name of a column's label: after `label:`, `seg` for a plain word, else the column's own."""
    if ":" in column:
        return column.partition(":")[2] or "seg"
    bare = re.sub("[_ -](path|file)$", "", column)
    return label_key(bare) if column not in ALIASES["label"] else "seg"


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
        label, name = row.get(column, ""), label_of(column)
        name = column if name in labels and ":" not in column else name
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
        tells_id=bool(cells["id"]),
        images=tuple(tree.path(i) for i in images),
        labels=labels,
        subject=cells["subject"],
        group=cells["group"],
        split=cells["split"],
    )
