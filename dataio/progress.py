"""Progress of long work: a rich bar on a terminal, one plain line every few seconds elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

PLAIN_INTERVAL_S = 5.0


class Progress(Protocol):
    """What long work calls: `advance` after each item, `note` for a line above the bar."""

    def advance(self, items: float = 1.0, status: str = "") -> None:
        """Count `items` more as done; `status` is free text such as a loss or a rate."""
        ...

    def move(self, items: float, status: str = "") -> None:
        """Shift the count by what was done before, or undone (< 0): neither enters the rate."""
        ...

    def note(self, line: str) -> None:
        """Print a line that stays."""
        ...


class PlainProgress:
    """Lines like `convert 12/60 (20 %) 3.1 volumes/s, 15 s left`, at most one per interval."""

    def __init__(self, name: str, total: float, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done, self._moved, self._status = 0.0, 0.0, ""
        self._began = self._shown_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if kind is None and self.done:
            self._show(time.monotonic(), self._status)

    def advance(self, items: float = 1.0, status: str = "") -> None:
        """Count items; print when the interval is over. The last status stays."""
        self.done += items
        self._status = status or self._status
        now = time.monotonic()
        if now - self._shown_at >= PLAIN_INTERVAL_S:
            self._show(now, self._status)

    def move(self, items: float, status: str = "") -> None:
        """Shift the count; the rate stays that of the items worked for since the beginning."""
        self._moved += items
        self.advance(items, status)

    def note(self, line: str) -> None:
        """Print a line at once."""
        print(line, flush=True)

    def _show(self, now: float, status: str) -> None:
        self._shown_at = now
        worked = self.done - self._moved
        rate = worked / max(now - self._began, 1e-9)
        share = 100.0 * self.done / max(self.total, 1e-9)
        parts = [f"{self.name} {round(self.done, 1):g}/{self.total:g} ({share:.0f} %)"]
        if worked:  # before the first item nothing can be said about the rest
            left_s = max(self.total - self.done, 0.0) / rate
            parts.append(f"{rate:.3g} {self.unit}/s, {left_s:.0f} s left")
        print(", ".join([*parts, status] if status else parts), flush=True)


class RichProgress:
    """The same on a terminal, as one live bar."""

    def __init__(self, name: str, total: float, unit: str) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
        )
        self._unit = unit
        self._began = time.monotonic()
        self._worked, self._rate, self._status = 0.0, "", ""
        self._task = self._bar.add_task(name, total=total, rate="", status="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, items: float = 1.0, status: str = "") -> None:
        """Count items and redraw. The last status stays."""
        self._worked += items
        self._status = status or self._status
        rate = self._worked / max(time.monotonic() - self._began, 1e-9)
        self._rate = f"{rate:.3g} {self._unit}/s"
        self._bar.update(self._task, advance=items, rate=self._rate, status=self._status)

    def move(self, items: float, status: str = "") -> None:
        """Shift the count; the time left is estimated anew from there."""
        self._status = status or self._status
        done = round(self._bar.tasks[0].completed + items)
        self._bar.reset(self._task, completed=done, rate=self._rate, status=self._status)

    def note(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(line, highlight=False, markup=False)


@contextmanager
def progress(name: str, total: float, unit: str = "items") -> Iterator[Progress]:
    """Show progress of `total` items; rich where stdout is a terminal."""
    kind = RichProgress if sys.stdout.isatty() else PlainProgress
    with kind(name, total, unit) as shown:
        yield shown
