"""Two processes are one with the double batch: losses, gradients, centres, assignments, prototypes."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from skysense_core.losses.alignment import align
from skysense_core.losses.dino import Answers, cross_entropy, moved_centre
from skysense_core.losses.sinkhorn import sinkhorn
from skysense_core.model.presets import PrototypeSpec
from skysense_core.model.prototypes import Prototypes

PLACES = torch.tensor([[-100.0, 40], [10, 50], [10, 50], [140, -30], [-100, 40], [10, 50]])
"""Of six samples, three in each process: one region is in both, one in the first, one in the second."""


def outcome(rows: slice) -> dict[str, torch.Tensor]:
    """Everything that processes share, of some of six samples; weights are such that the halves differ in count."""
    torch.manual_seed(0)
    hr, s2 = (torch.randn(6, 4, requires_grad=True) for _ in range(2))
    temperature = torch.tensor(0.07, requires_grad=True)
    present = {"hr": torch.tensor([1, 1, 0, 1, 1, 1]) > 0, "s2": torch.tensor([1, 0, 1, 1, 1, 1]) > 0}
    alignment = align(
        {"hr": hr[rows], "s2": s2[rows]}, {name: seen[rows] for name, seen in present.items()}, temperature
    )
    student = torch.randn(6, 5, requires_grad=True)
    teacher, weight = torch.randn(6, 5), torch.tensor([1.0, 0, 0, 1, 1, 1])
    directions = torch.randn(4, 5, requires_grad=True)
    answers = Answers(
        student=student[rows],
        teacher=teacher[rows],
        student_directions=directions,
        teacher_directions=torch.randn(4, 5),
        weight=weight[rows],
        centre=torch.ones(4),
    )
    contrast = cross_entropy(answers)
    (alignment + contrast).backward()

    prototypes = Prototypes(PrototypeSpec(rows=2, columns=4, count=4), 3)
    x, seen = torch.randn(6, 3, 2, 2), torch.rand(6, 2, 2) > 0.2
    prototypes.learn(x[rows], seen[rows], PLACES[rows], torch.ones(6, dtype=torch.bool)[rows], momentum=0.5)
    leaves = {"hr": hr, "s2": s2, "t": temperature, "student": student, "directions": directions}
    return {
        **{name: leaf.grad for name, leaf in leaves.items()},
        "alignment": alignment.detach(),
        "contrast": contrast.detach(),
        "centre": moved_centre(answers),
        "prototypes": prototypes.prototypes,
        "visited": prototypes.visited.float(),
        "shares": sinkhorn(torch.rand(6, 3)[rows], torch.tensor([0, 1, 0, 2, 0, 0])[rows], 3, everywhere=True),
    }


def one_of_two(rank: int, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    torch.save(outcome(slice(3 * rank, 3 * rank + 3)), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow  # two more processes import torch
def test_two_processes_are_one_with_the_double_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(one_of_two, args=(tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    whole = outcome(slice(0, 6))
    for name in ("alignment", "contrast", "hr", "s2", "t", "student"):  # data-parallel training averages
        assert torch.allclose((first[name] + second[name]) / 2, whole[name], atol=1e-5), name
    for name in ("centre", "prototypes", "visited"):
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], whole[name], atol=1e-5), name
    assert torch.allclose(torch.cat((first["shares"], second["shares"])), whole["shares"], atol=1e-5)
    assert whole["visited"].sum() == 3
    assert first["hr"].abs().max() > 0
