"""Cross-modal alignment against loops over places and pairs, and its limits."""

import math

import pytest
import torch
import torch.nn.functional as F

from skysense_core.losses.alignment import align

T = torch.tensor(0.07)


def features(b: int = 5, d: int = 4, names: tuple[str, ...] = ("hr", "s2", "s1")) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(b, d) for name in names}


def all_present(some: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.ones(len(x), dtype=torch.bool) for name, x in some.items()}


def by_loops(some: dict[str, torch.Tensor], present: dict[str, torch.Tensor], temperature: float) -> float:
    total = 0.0
    for i in some:
        for j in some:
            if i == j:
                continue
            terms = []
            for place in range(len(some[i])):
                if not (present[i][place] and present[j][place]):
                    continue
                similar = {
                    other: math.exp(float(F.cosine_similarity(some[i][place], some[j][other], dim=0)) / temperature)
                    for other in range(len(some[j]))
                    if present[j][other]
                }
                terms.append(-math.log(similar[place] / sum(similar.values())))
            total += sum(terms) / max(len(terms), 1)
    return total


def test_it_is_what_loops_compute_also_where_places_lack_a_modality() -> None:
    some = features()
    present = all_present(some)
    assert float(align(some, present, T)) == pytest.approx(by_loops(some, present, 0.07), rel=1e-4)
    present["s2"][[0, 3]] = False
    present["s1"][1] = False
    assert float(align(some, present, T)) == pytest.approx(by_loops(some, present, 0.07), rel=1e-4)


def test_limits() -> None:
    one = features(names=("s2",))
    assert float(align(one, all_present(one), T)) == 0
    alike = {name: torch.ones(5, 4) for name in ("hr", "s2", "s1")}
    assert float(align(alike, all_present(alike), T)) == pytest.approx(6 * math.log(5), rel=1e-5)
    apart = {name: torch.eye(4) for name in ("s2", "s1")}
    assert float(align(apart, all_present(apart), T)) == pytest.approx(0, abs=1e-4)


def test_lengths_do_not_matter_and_neither_does_the_order_of_places() -> None:
    some, order = features(), torch.randperm(5)
    loss = align(some, all_present(some), T)
    assert torch.allclose(align({n: 3 * x for n, x in some.items()}, all_present(some), T), loss, atol=1e-5)
    assert torch.allclose(align({n: x[order] for n, x in some.items()}, all_present(some), T), loss, atol=1e-5)


def test_absent_images_have_no_say_and_no_gradient_and_the_temperature_learns() -> None:
    some = {name: x.requires_grad_() for name, x in features().items()}
    present = all_present(some)
    present["s2"][2] = False
    temperature = T.clone().requires_grad_()
    loss = align(some, present, temperature)
    loss.backward()
    assert torch.equal(some["s2"].grad[2], torch.zeros(4))
    assert some["hr"].grad[2].abs().max() > 0  # hr and s1 still meet there
    assert float(temperature.grad) != 0
    other = {name: x.detach().clone() for name, x in some.items()}
    other["s2"][2] = 100.0
    assert torch.equal(align(other, present, T), loss.detach())


def test_modalities_that_never_meet_leave_a_loss_of_zero_with_a_gradient_of_zero() -> None:
    some = {name: x.requires_grad_() for name, x in features(names=("s2", "s1")).items()}
    present = {"s2": torch.tensor([True, True, True, False, False])}
    present["s1"] = ~present["s2"]
    loss = align(some, present, T)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in some.values())


def test_autocast_changes_nothing() -> None:
    some = features(d=64)
    alone = align(some, all_present(some), T)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(align(some, all_present(some), T), alone)
