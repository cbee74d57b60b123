"""Prototypes learn without a gradient, the teacher follows; both against plain arithmetic and their limits."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from test_losses_sinkhorn import textbook
from torch import nn

from skysense_core.model.presets import PrototypeSpec
from skysense_core.model.prototypes import Prototypes
from skysense_core.model.teacher import follow

WEST, EAST = (-100.0, 40.0), (10.0, 50.0)


def fresh(count: int = 4, width: int = 3) -> Prototypes:
    torch.manual_seed(0)
    return Prototypes(PrototypeSpec(rows=2, columns=4, count=count), width)


def batch(places: list[tuple[float, float]], width: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    b = len(places)
    seen = torch.ones(b, 2, 3, dtype=torch.bool)
    return {
        "x": 5 + torch.randn(b, width, 2, 3),
        "seen": seen,
        "lonlat": torch.tensor(places),
        "located": torch.ones(b, dtype=torch.bool),
    }


def test_the_update_is_that_of_the_equations_in_every_region() -> None:
    prototypes, some = fresh(), batch([WEST, EAST, WEST])
    some["seen"][2, 0, 1] = False
    before = prototypes.prototypes.clone()
    prototypes.learn(**some, momentum=0.9)
    region = prototypes.regions(some["lonlat"])
    for number in region.unique().tolist():
        rows = torch.cat([some["x"][i].permute(1, 2, 0)[some["seen"][i]] for i in range(3) if region[i] == number])
        similarity = F.normalize(rows, dim=-1) @ F.normalize(before[number], dim=-1).T
        shares = textbook(similarity.double().numpy(), 0.05, 3)
        update = (shares / shares.sum(0)).T @ rows.numpy()
        assert np.allclose(prototypes.prototypes[number], 0.9 * before[number].numpy() + 0.1 * update, atol=1e-4)
    others = [number for number in range(8) if number not in region]
    assert torch.equal(prototypes.prototypes[others], before[others])
    assert prototypes.visited.nonzero()[:, 0].tolist() == sorted(region.unique().tolist())


def test_uniform_prototypes_and_a_single_one_take_the_mean_of_the_features() -> None:
    for prototypes in (fresh(), fresh(count=1)):
        prototypes.prototypes[:] = 1.0
        some = batch([EAST])
        prototypes.learn(**some, momentum=0.0)
        (region,) = prototypes.regions(some["lonlat"]).tolist()
        mean = some["x"].mean((0, 2, 3))
        assert torch.allclose(prototypes.prototypes[region], mean.expand(prototypes.prototypes.shape[1], 3), atol=1e-4)


def test_features_that_are_the_prototypes_leave_them_where_they_are() -> None:
    prototypes = fresh(count=3)
    prototypes.prototypes[:] = torch.eye(3)
    some = batch([EAST]) | {"x": torch.eye(3).repeat_interleave(2, dim=1).reshape(1, 3, 2, 3)}
    prototypes.learn(**some, momentum=0.5)
    (region,) = prototypes.regions(some["lonlat"]).tolist()
    assert torch.allclose(prototypes.prototypes[region], torch.eye(3), atol=1e-4)


def test_nobody_learns_from_what_was_not_seen_or_lies_nowhere() -> None:
    prototypes, some = fresh(), batch([WEST, EAST])
    before = prototypes.prototypes.clone()
    some["located"][0], some["seen"][1] = False, False
    prototypes.learn(**some, momentum=0.9)
    assert torch.equal(prototypes.prototypes, before)
    assert not prototypes.visited.any()


def test_regions_do_not_touch_each_other_and_no_gradient_is_kept() -> None:
    alone, together = fresh(), fresh()
    some = batch([WEST, EAST])
    alone.learn(**{name: value[:1] for name, value in some.items()}, momentum=0.9)
    together.learn(**some | {"x": some["x"].requires_grad_()}, momentum=0.9)
    (region,) = alone.regions(some["lonlat"][:1]).tolist()
    assert torch.allclose(alone.prototypes[region], together.prototypes[region], atol=1e-6)
    assert not together.prototypes.requires_grad


def test_the_teacher_follows_parameters_slowly_and_buffers_at_once() -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    teacher = copy.deepcopy(student).requires_grad_(False)
    start = teacher[0].weight.clone()
    nn.init.ones_(student[0].weight)
    student[1].running_mean.fill_(7)
    for _ in range(10):
        follow(teacher, student, 0.9)
    assert torch.allclose(teacher[0].weight, 0.9**10 * start + (1 - 0.9**10), atol=1e-6)
    assert torch.equal(teacher[1].running_mean, student[1].running_mean)
    follow(teacher, student, 0.0)
    assert torch.equal(teacher[0].weight, student[0].weight)
    assert not teacher[0].weight.requires_grad


def test_autocast_changes_nothing() -> None:
    alone, mixed = fresh(width=16), fresh(width=16)
    alone.learn(**batch([WEST, EAST], width=16), momentum=0.9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed.learn(**batch([WEST, EAST], width=16), momentum=0.9)
        usage = mixed.usage(**batch([WEST, EAST], width=16))
    assert torch.equal(mixed.prototypes, alone.prototypes)
    assert usage == alone.usage(**batch([WEST, EAST], width=16))
