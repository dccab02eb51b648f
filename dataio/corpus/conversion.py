"""The recipe of a conversion: every choice that decides what a corpus holds."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal

from mim3d.dataio.chunks.codec import COMPRESSORS, SHUFFLES
from mim3d.dataio.corpus.arrays import NEWEST, WITH_OME_LABELS
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.geometry import check_orientation

FORMAT = 3
READABLE_FORMATS = (1, 2, 3)
GIB = 1 << 30
MOST_VALUES = 255


@dataclass(frozen=True)
class Conversion:
    """What to do with every source; the defaults change no voxel.

    `spacing_mm` is (z, y, x); `window` is (low, high) in real values; `byte_budget` is the largest
    decoded size of one file that is believed.
    """

    codec: Literal["lz4", "zstd"] = "lz4"
    """lz4 decodes fastest; zstd is smaller, for slow storage."""
    shuffle: Literal["auto", "byte", "bit"] = "auto"
    """What is laid side by side before compression: auto takes bits for lz4 and voxels of several
    bytes (smaller, faster to decode), bytes otherwise; byte is what corpora before it have."""
    chunk: int = 16
    """Side of the cubic inner chunk in voxels; crops that start on its multiples decode no more."""
    orientation: str = "RAS"
    """RAS or any such code, by permutation and flips only; "keep" for as is."""
    spacing_mm: tuple[float, float, float] | None = None
    """Resample to this voxel size, z y x; images anti-aliased."""
    dtype: Literal["native", "uint8", "int16", "float32"] = "native"
    """Stored dtype; int16 and uint8 quantise with a recorded slope, intercept and error."""
    window: tuple[float, float] | None = None
    """Clip real intensities to low..high; integers to the last ones inside."""
    foreground: bool = False
    """Crop to the box of the foreground."""
    nan_policy: Literal["reject", "zero", "keep"] = "reject"
    """NaN and infinities: quarantine the volume, write a real value of 0, or keep them (in floats,
    not resampled)."""
    time_axis: Literal["split", "channels"] = "split"
    """A fourth dimension: one volume per frame, or one channel per frame."""
    believe: Literal["auto", "sform", "qform", "pixdim"] = "auto"
    """Where a header's affines differ in spacing or direction: auto takes the sform and warns (exit
    3); sform and qform are taken whole, pixdim gives the voxel sizes alone."""
    units: Literal["header", "mm"] = "header"
    """Unit of voxel sizes: the header's (micron and metre become mm), or mm whatever it says."""
    ome_labels: bool = False
    """Lay labels where OME-Zarr's readers look for them, at labels/NAME: 12 files and folders a
    labelled volume instead of 8."""
    pyramid: bool = False
    """Add coarser scales of the image, each half the one before, so that viewers open a large
    volume at once: about 15 % more bytes, and 3 files and folders a scale."""
    label_values: tuple[str, ...] = ()
    """Values that labels hold for classes 1, 2, ...: 63,126,189,252 for all labels, or
    NAME=63,126 for one. They are numbered so, and any other value is an error. Where files hold
    either of several lists, NAME=1,2/63,126: 63 is class 1 as 1 is; names of classes go by the
    first."""
    byte_budget: int = 8 * GIB
    """Largest decoded file, in bytes."""

    def __post_init__(self) -> None:
        if self.codec not in COMPRESSORS:
            raise Mim3dError(f"codec {self.codec!r}: one of {', '.join(COMPRESSORS)}")
        if self.shuffle not in {"auto", *SHUFFLES}:
            raise Mim3dError(f"shuffle {self.shuffle!r}: one of auto, {', '.join(SHUFFLES)}")
        if not 4 <= self.chunk <= 256:
            raise Mim3dError(f"chunk {self.chunk}: a side of 4 to 256 voxels, 16 by default")
        check_orientation(self.orientation)
        if self.spacing_mm is not None and not all(0 < mm < 1e4 for mm in self.spacing_mm):
            raise Mim3dError(f"spacing {self.spacing_mm}: three positive numbers of mm, z y x")
        if self.window is not None and not all(map(isfinite, self.window)):
            raise Mim3dError(f"window {self.window}: two finite numbers, low and high")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise Mim3dError(f"window {self.window}: low must be below high")
        self._check_nan_policy()
        for word in self.label_values:
            _named_values(word)
        if self.byte_budget < 1:
            raise Mim3dError(f"byte budget {self.byte_budget}: must be positive")

    def _check_nan_policy(self) -> None:
        """NaN can be kept only where there is something to hold it."""
        if self.nan_policy != "keep":
            return
        remedy = "use --nan-policy zero or reject"
        if self.dtype in ("uint8", "int16"):
            raise Mim3dError(f"nan_policy 'keep' with dtype {self.dtype!r}: no NaN fits; {remedy}")
        if self.spacing_mm is not None:
            detail = f"spacing {self.spacing_mm}: resampling spreads every NaN over whole planes"
            raise Mim3dError(f"nan_policy 'keep' with {detail}; {remedy}")

    def values_of_label(self, name: str) -> tuple[int, ...]:
        """Values that stand for classes 1, 2, ... in a label; none where they are the classes. Of
        several lists, the first."""
        return next(iter(self.lists_of_label(name)), ())

    def lists_of_label(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Every list of such values: a file holds those of one."""
        named = dict(map(_named_values, self.label_values))
        return named.get(name, named.get("", ()))

    @property
    def labels_with_values(self) -> set[str]:
        """Labels that `label_values` name."""
        return {name for name, _ in map(_named_values, self.label_values) if name}

    def refuse_doubled_values(self) -> None:
        """Mim3dError where two words of `label_values` are for the same label: the last would count
        alone. Corpora that were made so before are read."""
        words: dict[str, str] = {}
        for word in self.label_values:
            name, _, listed = word.rpartition("=")
            if name in words:
                of = f"label {name}" if name else "all labels"
                whole = f"{name}={words[name]},{listed}" if name else f"{words[name]},{listed}"
                raise Mim3dError(
                    f"label values {' '.join(self.label_values)}: two words for {of}, of which the "
                    f"last would count alone; write one, with commas: --label-values {whole}"
                )
            words[name] = listed

    @property
    def lossless(self) -> bool:
        """Whether voxels are stored as they came (float64 still becomes float32)."""
        return self.spacing_mm is None and self.dtype == "native" and self.window is None

    @property
    def layout(self) -> int:
        """How the folders of new volumes are laid out (`corpus.arrays`)."""
        return WITH_OME_LABELS if self.ome_labels else NEWEST

    def attributes(self) -> dict[str, Any]:
        """The recipe as the corpus keeps it; the byte budget does not change what is stored."""
        fields = asdict(self)
        del fields["byte_budget"]
        return {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}


def _named_values(word: str) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """A label's name, or nothing for all, and its lists of values; Mim3dError where the word is no
    such."""
    name, _, listed = word.rpartition("=")
    try:
        lists = tuple(tuple(map(int, each.split(","))) for each in listed.split("/"))
    except ValueError as error:
        raise Mim3dError(f"label values {word!r}: numbers, as in 63,126 or seg=63,126") from error
    every = [value for values in lists for value in values]
    is_long = max(map(len, lists)) >= MOST_VALUES
    if is_long or len(set(every)) < len(every) or 0 in every:
        detail = f"1 to {MOST_VALUES - 1} different numbers, without the background's 0"
        raise Mim3dError(f"label values {word!r}: {detail}")
    return name, lists


def listed(lists: Iterable[Iterable[int]], between: str = ",") -> str:
    """Lists of a label's values as `label_values` have them."""
    return "/".join(between.join(map(str, values)) for values in lists)


@dataclass(frozen=True)
class Rerun:
    """What a run over a corpus that is there looks at, and may take out."""

    verify: bool = False
    """Read every byte of the volumes that are kept, and make damaged ones anew; without it sizes,
    metadata and indexes are looked at."""
    rehash: bool = False
    """Read every source, also those whose size and times say that they are unchanged."""
    prune: bool = False
    """Take out volumes whose sources are no more."""
    accept_losses: bool = False
    """Convert a volume anew also where it loses a label whose file is no more; without it such a
    volume stays as it is, and is told."""
