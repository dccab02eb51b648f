"""What a figure varies by, and whether a ratio is more than that.

Contestants take turns: round i of all of them met the same moment of the machine. A figure is the
median of its rounds with the least and the most of them. A ratio is taken within each round; its
interval is Student's t on the logarithms of those ratios, which allows for how few they are, and
where 1 lies inside it the ratio is unresolved: the run does not show that the two differ.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """A figure over its rounds."""

    median: float
    low: float
    high: float

    @property
    def share(self) -> float:
        """Range as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0

    def text(self, scale: float = 1.0, digits: int = 2) -> str:
        """For example "91.30 (89.90 to 95.02)"."""
        middle, low, high = (
            f"{scale * value:.{digits}f}" for value in (self.median, self.low, self.high)
        )
        return f"{middle} ({low} to {high})"


@dataclass(frozen=True)
class Compared:
    """One figure over another: geometric mean of the rounds' ratios and its interval.

    With one round there is no interval (None), and nothing is resolved; nor is what lies above
    `limit`, which a sound run cannot exceed.
    """

    value: float
    low: float | None
    high: float | None
    rounds: tuple[float, ...]
    limit: float | None = None

    @property
    def impossible(self) -> bool:
        """Whether it exceeds its limit: noise, whatever the interval."""
        return self.limit is not None and self.value > self.limit

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves 1 out."""
        if self.low is None or self.high is None or self.impossible:
            return False
        return not self.low <= 1.0 <= self.high

    def text(self) -> str:
        """For example "1.31 (1.22 to 1.41)" or "1.05 (0.90 to 1.22), unresolved"."""
        if self.low is None or self.high is None:
            return f"{self.value:.2f}, unresolved: one round tells nothing of its noise"
        verdict = "" if self.resolved else ", unresolved"
        if self.impossible:
            verdict += f": more than {self.limit:g} cannot be, so it is noise"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f}){verdict}"


def spread(rounds: Sequence[float]) -> Spread:
    """Median and range; ValueError without rounds."""
    if not rounds:
        raise ValueError("a figure needs at least one round")
    return Spread(statistics.median(rounds), min(rounds), max(rounds))


def compared(over: Sequence[float], under: Sequence[float], limit: float | None = None) -> Compared:
    """Ratio of two contestants that took turns; positive figures, as many on both sides."""
    ratios = tuple(a / b for a, b in zip(over, under, strict=True))
    if len(ratios) < 2:
        return Compared(spread(ratios).median, None, None, ratios, limit)
    logs = [math.log(ratio) for ratio in ratios]
    middle = statistics.fmean(logs)
    t = float(stdtrit(len(logs) - 1, 0.5 + CONFIDENCE / 2))
    margin = t * statistics.stdev(logs) / math.sqrt(len(logs))
    low, high = math.exp(middle - margin), math.exp(middle + margin)
    return Compared(math.exp(middle), low, high, ratios, limit)


def as_json(ratios: Mapping[str, Compared]) -> dict[str, dict[str, Any]]:
    """What --json keeps of ratios."""
    return {name: asdict(ratio) | {"resolved": ratio.resolved} for name, ratio in ratios.items()}


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The order of round `number`: there and back, so that a drift of the machine cancels."""
    return list(names) if number % 2 == 0 else list(reversed(names))
