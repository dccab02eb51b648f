"""What looking at an input found: the sources to convert, and what was left out and why."""

from dataclasses import dataclass

from mim3d.dataio.quarantine import Rejection
from mim3d.dataio.source import Source


@dataclass(frozen=True)
class Discovery:
    """Sources in a stable order, everything left out, and the layout they were read by.

    `warnings` are for a person: what was taken for something that it may not be.
    """

    sources: tuple[Source, ...]
    skipped: tuple[Rejection, ...] = ()
    layout: str = ""
    warnings: tuple[str, ...] = ()
