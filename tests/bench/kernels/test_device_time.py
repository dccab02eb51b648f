"""A call's kernels are told from those before it, and from the time of the call."""

import pytest
import torch

from mim3d.bench.kernels import device_time
from mim3d.bench.kernels.device_time import CALLS, CallTime, call_time, last_of_each
from mim3d.bench.timing import Flush


def test_kernels_of_each_call_follow_those_of_the_flush():
    seconds = [9.0, 9.0, 0.1, 0.2, 9.0, 9.0, 0.3, 0.4]
    assert last_of_each(seconds, 2, 2) == [[0.1, 0.2], [0.3, 0.4]]
    assert last_of_each(seconds[:-1], 2, 2) is None  # a call that launches now more, now fewer
    assert last_of_each(seconds, 2, 4) is None  # nothing but the flush


def test_on_a_cpu_there_is_the_call_alone(monkeypatch):
    monkeypatch.setattr("mim3d.bench.timing.FLUSH_BYTES", {"cpu": 64})
    found = call_time(lambda: sum(range(1000)), "cpu", Flush("cpu"))
    assert found == CallTime(found.call_s)
    assert found.call_s > 0


def test_kernels_alone_are_the_mean_over_the_calls(monkeypatch):
    alone = [9.0]
    both = [9.0, 0.1, 0.3] * CALLS
    answers = iter([alone, both])
    monkeypatch.setattr(device_time, "durations", lambda _steps: next(answers))
    monkeypatch.setattr(device_time, "once", lambda _function, _device: 1.0)
    found = call_time(lambda: None, "cuda", lambda: None)  # pyright: ignore[reportArgumentType]
    assert (found.call_s, found.kernels) == (1.0, 2)
    assert found.kernels_s == pytest.approx(0.4)


@pytest.mark.gpu
def test_a_device_tells_its_kernels():
    ones = torch.ones(1 << 20, device="cuda")
    found = call_time(lambda: ones.add_(1).mul_(2), "cuda", Flush("cuda"))
    assert found.kernels == 2
    assert found.kernels_s is not None
    assert 0 < found.kernels_s < found.call_s
