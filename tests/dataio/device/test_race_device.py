"""The device that stands in for a GPU catches what it is there for and lets right orders pass."""

import numpy as np
import pytest
import torch
from race_device import HOST, SIDE, RaceDevice, RaceError, WaitError

from mim3d.dataio.device.staged import staged


def made(device: RaceDevice) -> torch.Tensor:
    with device.side():
        return torch.ones(8)


def test_what_is_read_before_its_mark_is_a_race():
    with RaceDevice() as device:
        tensor = made(device)
        with pytest.raises(RaceError, match=r"compute reads .* what side writes"):
            tensor.sum()


def test_what_is_taken_over_is_read_and_let_go_of_in_order():
    with RaceDevice() as device:
        with device.side():
            work = staged(device, [torch.ones(8)])
        for _ in range(2):
            work.take()[0].sum()
        del work
        torch.ones(1)


def test_memory_that_nobody_holds_is_a_race_once_let_go_of():
    with RaceDevice() as device:
        with device.side():
            tensor = torch.ones(8)
            mark = device.record()
        device.wait(mark)
        tensor.sum()
        del tensor
        with pytest.raises(RaceError, match="side is let go of while compute may still use it"):
            torch.ones(1)


def test_memory_is_let_go_of_in_its_own_lanes_order():
    with RaceDevice() as device:
        tensor = made(device)
        with device.side():
            tensor.sum()
        del tensor
        torch.ones(1)


def test_writing_while_a_reader_is_not_through_is_a_race():
    with RaceDevice() as device:
        tensor = torch.ones(8)
        mark = device.record()
        with device.side():
            device.wait(mark)
            tensor.sum()
        with pytest.raises(RaceError, match=r"compute writes .* what side reads"):
            tensor.add_(1)
        with device.side():
            behind = device.record()
        device.wait(behind)
        tensor.add_(1)


def test_parts_of_one_memory_that_do_not_meet_are_no_race():
    with RaceDevice() as device:
        tensor = torch.empty(8)
        with device.side():
            tensor[:4].zero_()
        tensor[4:].zero_()
        with pytest.raises(RaceError):
            tensor[3:].zero_()


@pytest.mark.parametrize("wait", [lambda t: t.sum().item(), lambda t: t.nonzero(), bool])
def test_a_host_that_waits_where_it_must_not_is_a_fault(wait):
    with RaceDevice() as device:
        tensor = torch.ones(1)
        wait(tensor)
        with device.hot(), pytest.raises(WaitError):
            wait(tensor)


def test_a_copy_from_ordinary_memory_waits():
    ordinary = torch.from_numpy(np.ones(4))
    with RaceDevice() as device, device.hot():
        device.upload(device.pinned(4))
        with pytest.raises(WaitError, match="ordinary memory"):
            device.upload(ordinary)


def test_the_host_reads_what_was_brought_only_once_it_is_there():
    with RaceDevice() as device:
        target = device.pinned(8).view(torch.int64)
        device.download(target, torch.ones(1, dtype=torch.int64))
        mark = device.record()
        assert not device.passed(mark)
        with pytest.raises(RaceError, match="host reads"):
            int(target)
        device.finish(mark)
        assert int(target) == 1


def test_pinned_memory_may_go_while_it_is_copied_but_not_while_a_kernel_reads_it():
    with RaceDevice() as device:
        device.upload(device.pinned(4))
        torch.ones(1)
        pinned, target = device.pinned(4), torch.zeros(4, dtype=torch.uint8)
        target.add_(pinned)
        del pinned
        with pytest.raises(RaceError, match=f"memory of {HOST} is let go of"):
            torch.ones(1)


def test_addresses_that_are_nobodys_are_refused():
    with RaceDevice() as device, device.side():
        tensor = torch.zeros(4, dtype=torch.uint8)
        device.begins("call")
        device.touch("call", np.array([tensor.data_ptr()]), np.array([4]), writes=True)
        with pytest.raises(RaceError, match="nobody's"):
            device.touch("call", np.array([tensor.data_ptr()]), np.array([5]), writes=True)
        assert (SIDE, "call") in device.log
