"""What layouts hand to the converter: the files of one future volume, before any is opened."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mim3d.dataio.errors import Rejection, SourceError


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
    when they were taken.
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

    def __post_init__(self) -> None:
        if not self.images:
            raise SourceError("no-image", self.id, "a source names no image file")
        if not self.id:
            raise SourceError("no-id", self.images[0], "a source has an empty id")

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file of the source, images first, labels by name."""
        return (*self.images, *(self.labels[name] for name in sorted(self.labels)))


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
