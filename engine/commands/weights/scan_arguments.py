"""What commands over scans take: whose network, which scans, where to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class ScanArgs:
    """RUN SRC DST."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Whose network it is."""
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """NIfTI file, folder, glob, table or datalist, as `mim3d convert` takes them, or a corpus."""
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Folder of the results; the same command goes on where it stopped."""
    corpus: str = ""
    """Corpus that RUN was trained on, for runs of versions that did not keep its recipe."""
