"""What a request to a store costs, learned from those that were answered."""

import math

FORGET = 0.995  # of what is known, with every answer
FIRST_LATENCY_S, FIRST_BYTES_PER_S = 0.03, 80e6
"""Taken until a store has answered: an S3 bucket of the same region."""
FASTEST, SLOWEST = 1e9, 1e5  # bytes a second
REQUEST_BYTES = 1 << 16
"""Moved in the CPU time that a request costs its client: gaps of fewer are worth no request."""
ANSWERS_PER_S = 30_000
"""That a client takes in: with as many in flight as that makes in a latency, it never waits."""
FEW = 64  # requests in flight, which no store is asked fewer of
WINDOW = 256  # calls, of which the quickest counts
TELLING_BYTES = 1 << 17
"""Sizes that differ by less tell little of the bandwidth: the times of requests differ by more."""


class Link:
    """Seconds a request takes, as `latency_s + nbytes / bytes_per_s`.

    By running least squares, of which the slope begins at what is usual.
    """

    def __init__(self) -> None:
        self.latency_s, self.bytes_per_s = FIRST_LATENCY_S, FIRST_BYTES_PER_S
        self._earlier, self._lately, self._calls = FIRST_LATENCY_S, math.inf, 0
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    @property
    def latency_bytes(self) -> float:
        """What a connection carries in one latency, or is moved at the cost of a request."""
        return max(self.latency_s * self.bytes_per_s, REQUEST_BYTES)

    @property
    def useful(self) -> int:
        """Requests in flight beyond which answers only queue: by the quickest of late, for what
        waits in a queue of ours says nothing of the store."""
        return FEW + int(ANSWERS_PER_S * min(self._earlier, self._lately))

    def record(self, nbytes: int, seconds: float) -> None:
        """Learn from one answer."""
        self._lately, self._calls = min(self._lately, seconds), self._calls + 1
        if self._calls == WINDOW:
            self._earlier, self._lately, self._calls = self._lately, math.inf, 0
        x, y = float(nbytes), seconds
        self._n = self._n * FORGET + 1
        self._x = self._x * FORGET + x
        self._y = self._y * FORGET + y
        self._xx = self._xx * FORGET + x * x
        self._xy = self._xy * FORGET + x * y
        mean_x, mean_y = self._x / self._n, self._y / self._n
        variance = self._xx / self._n - mean_x**2
        covariance = self._xy / self._n - mean_x * mean_y
        doubt = float(TELLING_BYTES) ** 2
        slope = (covariance + doubt / FIRST_BYTES_PER_S) / (variance + doubt)
        self.bytes_per_s = 1 / min(max(slope, 1 / FASTEST), 1 / SLOWEST)
        self.latency_s = max(mean_y - mean_x / self.bytes_per_s, 0.0)
