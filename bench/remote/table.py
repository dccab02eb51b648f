"""The rates of `mim3d bench loader --remote` for people and for --json."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from mim3d.bench.noise import Compared, compared, spread
from mim3d.bench.remote.rounds import Rate
from mim3d.bench.remote.streams import CLIENT, OURS

LOCAL, RESIDENT = "mim3d, local disk", "mim3d, resident"
Rounds = Mapping[str, Sequence[Rate]]


def table(title: str, rounds: Rounds, needed: float) -> str:
    """Medians at one latency as text; `needed` bytes are stored of a crop."""
    width = max(map(len, rounds))
    head = (
        f"{title:<{width}}  CPU ms/crop  server's ms  requests/crop  bytes/needed  "
        f"{'crops/s':<22}  mim3d is"
    )
    rows = []
    for name, rates in rounds.items():
        per_s = spread([rate.per_s for rate in rates]).text(digits=0)
        ratio = "" if name == OURS else over(rounds, OURS, name).text()
        rows.append(
            f"{name:<{width}}  {_median(rates, lambda r: r.cpu_ms):11.2f}"
            f"  {_median(rates, lambda r: r.server_cpu_ms):11.2f}"
            f"  {_median(rates, lambda r: r.requests):13.1f}"
            f"  {_median(rates, lambda r: r.nbytes) / needed:12.2f}  {per_s:<22}  {ratio}"
        )
    return "\n".join([head, *rows])


def ratios(rounds: Rounds) -> dict[str, Compared]:
    """What the targets are about; of tensorstore's settings the fastest counts."""
    found = {
        "over_local": over(rounds, OURS, LOCAL),
        "over_client": over(rounds, OURS, CLIENT),
        "resident_over_local": over(rounds, RESIDENT, LOCAL),
    }
    others = [name for name in rounds if name.startswith("tensorstore")]
    if others:
        best = max(others, key=lambda name: _median(rounds[name], lambda r: r.per_s))
        found["over_tensorstore"] = over(rounds, OURS, best)
    return found


def over(rounds: Rounds, name: str, other: str) -> Compared:
    """Crops per second of one over another's."""
    return compared([r.per_s for r in rounds[name]], [r.per_s for r in rounds[other]])


def _median(rates: Sequence[Rate], figure: Callable[[Rate], float]) -> float:
    return statistics.median(map(figure, rates))
