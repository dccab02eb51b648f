"""What a request to a store costs, learned from those that were answered."""

FORGET = 0.995  # of what is known, with every answer
FIRST_LATENCY_S, FIRST_BYTES_PER_S = 0.03, 80e6
"""Taken until a store has answered: an S3 bucket of the same region."""
FASTEST, SLOWEST = 1e9, 1e5  # bytes a second
TELLING_BYTES = 1 << 17
"""Sizes that differ by less tell little of the bandwidth: the times of requests differ by more."""


class Link:
    """Seconds a request takes, as `latency_s + nbytes / bytes_per_s`.

    By running least squares, of which the slope begins at what is usual.
    """

    def __init__(self) -> None:
        self.latency_s, self.bytes_per_s = FIRST_LATENCY_S, FIRST_BYTES_PER_S
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    @property
    def latency_bytes(self) -> float:
        """What a connection carries in one latency."""
        return self.latency_s * self.bytes_per_s

    def record(self, nbytes: int, seconds: float) -> None:
        """Learn from one answer."""
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
