"""NT-Xent: the definition, exact gradients, and two ranks that agree with one process."""

import math
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from mim3d.kernels.nt_xent import chance_level, nt_xent


def by_definition(first, second, temperature):
    z = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    logits = z @ z.T / temperature
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool), -math.inf)
    b = len(first)
    return torch.nn.functional.cross_entropy(logits, (torch.arange(2 * b) + b) % (2 * b))


def views(b, d, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(b, d, generator=generator, dtype=dtype).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("b", [2, 5])
def test_definition_and_gradient(b):
    first, second = views(b, 7)
    loss, truth = nt_xent(first, second, 0.3), by_definition(first, second, 0.3)
    torch.testing.assert_close(loss, truth)
    torch.testing.assert_close(
        torch.autograd.grad(loss, (first, second)), torch.autograd.grad(truth, (first, second))
    )


def test_gradcheck():
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), views(4, 5))


def test_bfloat16_embeddings_are_scored_in_float32():
    first, second = (t.detach().bfloat16() for t in views(6, 8))
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(first, second, 0.1)
    assert loss.dtype == torch.float32
    truth = by_definition(first.double(), second.double(), 0.1)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)


def test_a_backward_inside_autocast_is_computed_in_float32_too():
    first, second = views(16, 64, torch.float32)
    truth = torch.autograd.grad(nt_xent(first, second, 0.1), (first, second))
    with torch.autocast("cpu", torch.bfloat16):
        gradients = torch.autograd.grad(nt_xent(first, second, 0.1), (first, second))
    assert all(torch.equal(a, b) for a, b in zip(gradients, truth, strict=True))


def test_uninformative_embeddings_are_at_chance():
    same = torch.ones(8, 4)
    assert nt_xent(same, same, 0.2).item() == pytest.approx(chance_level(8), rel=1e-6)


def test_compiles_as_one_graph():
    first, second = views(4, 8, torch.float32)
    compiled = torch.compile(nt_xent, fullgraph=True, backend="aot_eager")
    loss, truth = compiled(first, second, 0.5), nt_xent(first, second, 0.5)
    torch.testing.assert_close(loss, truth)
    torch.testing.assert_close(
        torch.autograd.grad(loss, (first, second)), torch.autograd.grad(truth, (first, second))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(3, 3), 0.1), r"first has shape \(2, 3\)"),
        ((torch.zeros(1, 3), torch.zeros(1, 3), 0.1), "at least 2 samples"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), 0.0), "temperature is 0.0"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), math.inf), "temperature is inf"),
        ((torch.zeros(2, 3), torch.zeros(2, 3).double(), 0.1), "second torch.float64 on cpu"),
        ((torch.zeros(2, 3).int(), torch.zeros(2, 3).int(), 0.1), "first is torch.int32"),
        ((torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), 0.1), "on meta; both must be"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        nt_xent(*arguments)


def run_rank(store, results, rank):
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    first, second = (t.detach()[rank * 3 : rank * 3 + 3].requires_grad_() for t in views(6, 5))
    loss = nt_xent(first, second, 0.3)
    loss.backward()
    torch.save((loss.detach(), first.grad, second.grad), f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_agree_with_one_process(tmp_path):
    command = [sys.executable, __file__, str(tmp_path / "store"), str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [process.wait(400) for process in processes] == [0, 0]
    first, second = views(6, 5)
    loss = by_definition(first, second, 0.3)
    loss.backward()
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for share, _, _ in ranks:
        torch.testing.assert_close(share, loss.detach())
    torch.testing.assert_close(torch.cat([r[1] for r in ranks]), first.grad)
    torch.testing.assert_close(torch.cat([r[2] for r in ranks]), second.grad)


if __name__ == "__main__":
    run_rank(sys.argv[1], sys.argv[2], int(sys.argv[3]))
