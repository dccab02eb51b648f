"""How much is asked of a store at a time."""

from dataclasses import dataclass

from mim3d.dataio.errors import Mim3dError


@dataclass(frozen=True)
class RemoteLimits:
    """Bounds of one reader: `requests` in flight, and `nbytes` of what was asked for and not yet
    read. What someone waits for is fetched whatever its size."""

    requests: int = 512
    nbytes: int = 256 << 20

    def __post_init__(self) -> None:
        for name in ("requests", "nbytes"):
            if getattr(self, name) < 1:
                raise Mim3dError(f"remote {name}={getattr(self, name)} must be at least 1")
