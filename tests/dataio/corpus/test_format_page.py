"""docs/format.md names every field that is written, and the chunk table's with their types."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from mim3d.dataio.corpus.channel_rows import CHANNELS, CLIPPED
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.history import Event
from mim3d.dataio.corpus.manifest import (
    ChannelRecord,
    Intensity,
    LabelRecord,
    ScaleRecord,
    VolumeRecord,
)
from mim3d.dataio.corpus.seen_files import SeenFile
from mim3d.dataio.corpus.table_rows import SECTIONS, section_of
from mim3d.dataio.errors import Rejection

PAGE = (Path(__file__).resolve().parents[3] / "docs/format.md").read_text()
WRITTEN = [
    *(VolumeRecord, LabelRecord, ScaleRecord, ChannelRecord, Intensity),
    *(Event, Rejection, SeenFile),
]


def row(section: str) -> str:
    """What the page has of an array of the table."""
    (found,) = re.findall(rf"^\| [^|]*`{section}`[^|]* \| [^|]* \| ([^|]*) \|$", PAGE, re.MULTILINE)
    return found


def words(dtype: np.dtype) -> str:
    """`3 u4` of three uint32, `u4` of one."""
    base = f"{dtype.base.kind}{dtype.base.itemsize}"
    return f"{' × '.join(map(str, dtype.shape))} {base}".strip()


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: kind.__name__)
def test_every_field_is_named(kind: type) -> None:
    missing = [f.name for f in fields(kind) if f"`{f.name}`" not in PAGE]
    assert not missing


def test_every_option_of_a_conversion_is_named() -> None:
    part = PAGE.split("## Root")[1].split("## Arrays")[0]
    assert set(re.findall(r"`(\w+)`", part)) >= Conversion().attributes().keys()


@pytest.mark.parametrize("section", ["volumes", "arrays", "points"])
def test_rows_of_the_table_are_told_in_order_with_their_types(section: str) -> None:
    (dtype,) = SECTIONS[section]
    text, at = row(section), 0
    for name in dtype.names or ():
        at = text.index(f"`{name}`", at)
        kind = words(dtype[name])
        told = text[at:].removeprefix(f"`{name}` ").startswith(kind)
        assert told or (kind == "f4" and "then f4:" in text[:at]), name


def test_the_other_arrays_are_told() -> None:
    for section in SECTIONS:
        assert row(section), section
    assert all(name in row(section_of(CHANNELS)) for name in CLIPPED)
