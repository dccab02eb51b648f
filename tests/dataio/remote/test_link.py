"""What a request costs, from answers whose cost is known."""

import numpy as np
import pytest

from mim3d.dataio.remote.link import FEW, REQUEST_BYTES, WINDOW, Link


@pytest.mark.parametrize(("latency_s", "bytes_per_s"), [(0.001, 500e6), (0.03, 80e6), (0.2, 10e6)])
def test_latency_and_bandwidth_are_found(latency_s, bytes_per_s):
    link, rng = Link(), np.random.default_rng(0)
    for nbytes in rng.integers(1 << 14, 4 << 20, 800).tolist():
        link.record(nbytes, latency_s + nbytes / bytes_per_s)
    assert link.latency_s == pytest.approx(latency_s, rel=0.1, abs=3e-4)
    assert link.bytes_per_s == pytest.approx(bytes_per_s, rel=0.1)


def test_noise_on_requests_of_one_size_does_not_make_a_bandwidth():
    link, rng = Link(), np.random.default_rng(0)
    for noise in rng.exponential(0.05, 1000):
        link.record(int(rng.integers(17_000, 23_000)), 0.03 + noise)
    assert 0.05 < link.latency_s < 0.12
    assert link.bytes_per_s == pytest.approx(80e6, rel=0.3)


def test_it_follows_a_store_that_changes():
    link = Link()
    for _ in range(1000):
        link.record(20_000, 0.2)
    for _ in range(1000):
        link.record(20_000, 0.01)
    assert link.latency_s < 0.012


def test_the_quickest_answers_say_how_many_in_flight_are_of_use():
    link = Link()
    assert link.useful > 900  # nothing is known yet
    for seconds, useful in ((0.0004, FEW + 12), (0.03, FEW + 900), (0.0004, FEW + 12)):
        for n in range(2 * WINDOW):
            link.record(20_000, seconds * (1 + n % 7))  # most wait in a queue of ours
        assert link.useful == useful


def test_gaps_that_cost_less_than_a_request_are_never_asked_around():
    link = Link()
    for _ in range(1000):
        link.record(20_000, 0.0)
    assert link.latency_bytes == REQUEST_BYTES
