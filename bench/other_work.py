"""Whether anything else kept the CPUs busy while something was timed.

The load average cannot tell: it still holds what the bench itself did a minute before.
"""

import os
import resource
import time
from pathlib import Path
from typing import Self

BUSY_SHARE = 0.1  # of all CPUs: beyond this a wall time is not that of the job alone


class OtherWork:
    """A stretch of time; `share` is the part of all CPUs that others used, None if not known.

    Others are all but this process and the children it has waited for by the end.
    """

    share: float | None = None

    def __enter__(self) -> Self:
        self._began, self._all, self._own = time.monotonic(), busy_seconds(), own_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        passed, now = time.monotonic() - self._began, busy_seconds()
        if self._all is not None and now is not None and passed > 0:
            others = now - self._all - (own_seconds() - self._own)
            self.share = max(0.0, others / passed / (os.cpu_count() or 1))

    def text(self) -> str:
        """For example "3 %"."""
        return "an unknown part" if self.share is None else f"{100 * self.share:.0f} %"

    @property
    def busy(self) -> bool:
        """Whether others used enough to spoil wall times."""
        return self.share is not None and self.share > BUSY_SHARE


def busy_seconds(stat: Path = Path("/proc/stat")) -> float | None:
    """CPU seconds of all processes since the start of the machine; None where Linux does not tell.

    Time stolen by the hypervisor counts as used by others.
    """
    try:
        fields = stat.read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU seconds of this process and of the children it has waited for, and theirs."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
