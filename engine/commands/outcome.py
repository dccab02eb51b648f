"""What a command leaves behind: its figures, and how much it lost on the way."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mim3d.engine.errors import EXIT_LOST, EXIT_OK


@dataclass(frozen=True)
class Outcome:
    """Figures of a finished command, written by `--json`; `lost` counts inputs not carried over."""

    figures: Mapping[str, Any] = field(default_factory=dict)
    lost: int = 0
    writes_json: bool = True
    """Whether `--json` writes the figures here; of many ranks of a run one does."""

    @property
    def exit_code(self) -> int:
        """0, or 3 where something was lost (quarantined files, skipped cells)."""
        return EXIT_LOST if self.lost else EXIT_OK
