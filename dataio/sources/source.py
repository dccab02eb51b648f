"""What layouts hand to the converter: the files of one future volume, before any is opened."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.subjects.declared import ACCEPTED, DECLARED


@dataclass(frozen=True)
class Source:
    """The files of one future volume.

    `id` is the wanted id; the converter sanitises it and makes it unique. `images` is one path, or
    one per channel of a multi-modal volume, all on one grid: a local path or an s3://, gs:// or
    http(s):// address. `labels` maps a label's name (`seg` where the layout has no name for it) to
    its path. `subject` and `group` (dataset, site, left/right pair) are what splits must not cut
    through; `split` is what the layout said ("train", "test", ...), or empty. `subject_from` is the
    rule that gave the subject (DECLARED where the user or a table did) and `doubt` why it may be
    wrong. `channel_names` are the channels' modalities and `class_names` the classes' names by
    label, where the layout tells them; `ignore` is the value of a label that is no class; `visit`
    is what images taken together share, where the layout tells (a row of a table), and `session`
    when they were taken. `is_declared` holds where an option tells the subject,
    also where it was accepted then, and `tells_id` where a table does the id.
    """

    id: str
    images: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    subject: str = ""
    group: str = ""
    split: str = ""
    subject_from: str = ""
    doubt: str = ""
    channel_names: tuple[str, ...] = ()
    class_names: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    ignore: Mapping[str, int] = field(default_factory=dict)
    visit: str = ""
    session: str = ""
    is_declared: bool = False
    tells_id: bool = False

    def __post_init__(self) -> None:
        if not self.images:
            raise SourceError("no-image", self.id, "a source names no image file")
        if not self.id:
            raise SourceError("no-id", self.images[0], "a source has an empty id")

    @property
    def tells_subject(self) -> bool:
        """Whether the user, a table or a layout states the subject, rather than names alone."""
        by_rule = self.is_declared or self.subject_from in (DECLARED, "")  # no rule: by the library
        of_group = bool(self.group) and self.subject.startswith(f"{self.group}/")
        return bool(self.subject) and (by_rule or of_group)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file of the source, images first, labels by name."""
        return (*self.images, *(self.labels[name] for name in sorted(self.labels)))


def was_declared(rule: str, *, or_accepted: bool = False) -> bool:
    """Whether the rule of a subject, as manifests have it, says that a person gave it; or looked at
    it and found it right."""
    return rule == DECLARED or (or_accepted and rule == ACCEPTED)


@dataclass(frozen=True)
class Discovery:
    """Sources in a stable order, everything left out, and the layout they were read by.

    `warnings` are for a person: what was taken for something that it may not be; `notes` are what
    is worth knowing and is no doubt. `root` is the folder or address that names are shown below.
    """

    sources: tuple[Source, ...]
    skipped: tuple[Rejection, ...] = ()
    layout: str = ""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    root: str = ""
