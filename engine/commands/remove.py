"""`mim3d remove CORPUS --subject ID...`: volumes out for good, as a withdrawn consent asks."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console

from mim3d.dataio.errors import Mim3dError
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome


@dataclass(frozen=True)
class RemoveArgs:
    """Arguments of the command."""

    corpus: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS")]
    """Corpus folder or address."""
    subject: tuple[str, ...] = ()
    """Subjects whose volumes are all to go; later scans of them are left out as well."""
    volume: tuple[str, ...] = ()
    """Single volumes, by id."""
    readmit: tuple[str, ...] = ()
    """Subjects or volumes that were removed and may be converted again."""

    def __post_init__(self) -> None:
        if bool(self.subject or self.volume) == bool(self.readmit):
            raise Mim3dError("name --subject or --volume to remove, or else --readmit")


def main(words: list[str]) -> Outcome:
    """Remove, or readmit, and tell what is gone."""
    args = parse(
        RemoveArgs,
        words,
        "mim3d remove",
        "Take volumes out of a corpus for good: their folders, their lines in the manifest, their "
        "rows in the table. history.jsonl tells of it, and `mim3d convert` leaves out what was "
        "removed, by name, by path and by content (of the files, and of the voxels as they were "
        "stored), until it is readmitted. What other software resampled or changed is known by "
        "name and path alone. Exit code 3 tells that the same content is there under another name.",
    )
    from mim3d.dataio.convert.upkeep import copies_left, readmit, remove, removed_on

    console = Console(soft_wrap=True, highlight=False)
    if args.readmit:
        names = list(dict.fromkeys(args.readmit))
        readmit(args.corpus, names)
        console.print(f"{args.corpus}: {', '.join(names)} may be converted again", markup=False)
        return Outcome({"readmitted": names})
    earlier = removed_on(args.corpus, {*args.subject, *args.volume})
    gone = remove(args.corpus, subjects=args.subject, volumes=args.volume)
    volumes = f": {', '.join(gone)}" if gone else ""
    console.print(f"{args.corpus}: {len(gone)} volumes removed{volumes}", markup=False)
    for name, day in earlier.items():
        if name not in gone:
            console.print(f"  {name} was removed on {day} already", markup=False)
    left = copies_left(args.corpus)
    for line in left:
        console.print(f"warning: {line}", markup=False)
    figures = {"removed": gone, "removed_before": earlier, "copies_left": left}
    return Outcome(figures, lost=len(left))
