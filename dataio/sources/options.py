"""What a person tells about sources that files and names do not, or tell wrongly."""

import re
from dataclasses import dataclass

from mim3d.dataio.errors import Mim3dError


@dataclass(frozen=True)
class SourceOptions:
    """What names cannot tell; the defaults leave everything to them."""

    subject: str | None = None
    """Regular expression of the person in a path below SRC: its groups, or all it matches, are the
    subject ('(sub-[0-9]+)'; '^([^/]+)/' for the first folder)."""
    subjects: str | None = None
    """Table (.csv, .tsv) with columns file and subject: a file by path below SRC, name or id, or a
    folder with all below it."""
    dataset: str = ""
    """Name of the data set: stands before every subject, so that sub-01 of two data sets in one
    corpus stays two people, and is their group."""
    base: str | None = None
    """Folder or address that the paths of a datalist or table begin at; its own by default."""
    channels: tuple[str, ...] = ()
    """Words of file names whose images of one visit become the channels of one volume, in this
    order: --channels t1n t1c t2w t2f."""
    merge_labels: str | None = None
    """Map of mask files to classes (JSON {"liver": 1, "spleen": 2}, or a table of name and class):
    the masks it names become one label, seg; where masks overlap, the higher class stays."""
    ignore_label: int | None = None
    """Value of labels that is no class (untold, out of scope); 255 is taken for it where other
    classes are few (a mask of 0 and 255 alone is stored as class 1), and dataset.json of nnU-Net
    may name it."""
    accept_doubts: bool = False
    """What is in doubt (whose, or a label) was looked at and is right: it makes no exit 3."""

    def __post_init__(self) -> None:
        if self.subject is None:
            return
        try:
            re.compile(self.subject)
        except re.error as error:
            problem = f"subject {self.subject!r}: no regular expression ({error})"
            raise Mim3dError(f"{problem}; quote it, and escape brackets that are meant") from error
        if self.subjects is not None:
            raise Mim3dError(f"subject {self.subject!r} and subjects {self.subjects!r}: tell one")
