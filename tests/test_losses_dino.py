"""Cross-entropy of student and teacher, its sum over levels and features, and the centre; in numpy's plain words."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from skysense_core.losses import dino
from skysense_core.losses.dino import Answers, cross_entropy, mgcl, moved_centre


def answers(n: int = 6, k: int = 5, seed: int = 0) -> Answers:
    torch.manual_seed(seed)
    return Answers(
        student=torch.randn(n, k),
        teacher=torch.randn(n, k),
        student_directions=torch.eye(k),
        teacher_directions=torch.eye(k),
        weight=torch.ones(n),
        centre=0.1 * torch.randn(k),
    )


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def by_hand(given: Answers, ts: float, tt: float) -> float:
    total = 0.0
    for s, t, w in zip(given.student.double().numpy(), given.teacher.double().numpy(), given.weight, strict=True):
        p, q = softmax((t - given.centre.double().numpy()) / tt), softmax(s / ts)
        total -= float(w) * sum(a * np.log(b) for a, b in zip(p, q, strict=True))
    return total / float(given.weight.sum())


@given(seed=st.integers(0, 50), ts=st.floats(0.1, 1), tt=st.floats(0.04, 1), dropped=st.integers(0, 5))
def test_cross_entropy_is_that_of_the_formula(seed: int, ts: float, tt: float, dropped: int) -> None:
    some = answers(seed=seed)
    some.weight[:dropped] = 0
    found = cross_entropy(some, student_temperature=ts, teacher_temperature=tt)
    assert float(found) == pytest.approx(by_hand(some, ts, tt), rel=1e-4)


def test_views_that_agree_reach_the_entropy_of_the_teacher_and_no_student_does_better() -> None:
    some = answers()
    agreeing = replace(some, student=(some.teacher - some.centre) * 0.1 / 0.04)
    p = torch.softmax((some.teacher - some.centre) / 0.04, dim=-1)
    entropy = float(-(p * p.log()).nan_to_num().sum(-1).mean())
    least = float(cross_entropy(agreeing))
    assert least == pytest.approx(entropy, abs=1e-5)
    for seed in range(20):
        other = replace(agreeing, student=agreeing.student + answers(seed=seed).student)
        assert float(cross_entropy(other)) >= least


def test_the_gradient_goes_to_the_student_alone_and_vanishes_where_it_agrees() -> None:
    some = answers()
    student, teacher = some.student.requires_grad_(), some.teacher.requires_grad_()
    cross_entropy(replace(some, student=student, teacher=teacher)).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().max() > 0
    agreeing = ((teacher - some.centre) * 0.1 / 0.04).detach().requires_grad_()
    cross_entropy(replace(some, student=agreeing)).backward()
    assert torch.allclose(agreeing.grad, torch.zeros_like(agreeing), atol=1e-5)


def test_what_every_class_has_in_common_changes_nothing() -> None:
    some = answers()
    shifted = replace(some, student=some.student + 3, teacher=some.teacher - 7, centre=some.centre + 2)
    assert torch.allclose(cross_entropy(shifted), cross_entropy(some), atol=1e-4)


def test_rows_without_weight_count_for_nothing_and_without_any_the_loss_is_zero() -> None:
    some = answers()
    some.weight[2] = 0
    spoilt = replace(some, student=some.student.clone())
    spoilt.student[2] = 1e4
    assert torch.equal(cross_entropy(spoilt), cross_entropy(some))
    student = some.student.requires_grad_()
    loss = cross_entropy(replace(some, student=student, weight=torch.zeros(6)))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_half_precision_answers_are_compared_in_single_precision() -> None:
    some = answers(n=3, k=4000)
    half = replace(some, student=some.student.bfloat16(), teacher=some.teacher.bfloat16())
    back = replace(some, student=half.student.float(), teacher=half.teacher.float())
    assert cross_entropy(half).dtype == torch.float32
    assert torch.equal(cross_entropy(half), cross_entropy(back))


def test_contrast_of_many_features_is_the_plain_sum_of_all_levels() -> None:
    levels = {name: answers(n=n, seed=n) for name, n in (("pixel", 9), ("object", 4), ("image", 2))}
    features = {"s2": levels, "fused": {"image": answers(seed=11)}}
    named = mgcl(features, student_temperature=0.1, teacher_temperature=0.05)
    assert list(named) == ["s2.pixel", "s2.object", "s2.image", "fused.image"]
    expected = [by_hand(one, 0.1, 0.05) for levels in features.values() for one in levels.values()]
    assert [float(value) for value in named.values()] == pytest.approx(expected, rel=1e-4)


def test_the_centre_moves_to_the_mean_of_what_counts_and_stays_without_it() -> None:
    some = answers()
    some.weight[:] = torch.tensor([1.0, 1, 0, 0, 0, 1])
    wanted = 0.9 * some.centre + 0.1 * some.teacher[[0, 1, 5]].mean(0)
    assert torch.allclose(moved_centre(some, 0.9), wanted, atol=1e-6)
    assert torch.equal(moved_centre(replace(some, weight=torch.zeros(6))), some.centre)


def test_a_centre_that_has_arrived_cancels_what_the_teacher_always_says() -> None:
    """Collapse to one answer: the teacher says the same of everything; centred, it prefers nothing."""
    same = torch.randn(5).expand(6, 5)
    some = replace(answers(), teacher=same)
    for _ in range(200):
        some = replace(some, centre=moved_centre(some, 0.9))
    uniform = replace(some, student=torch.zeros(6, 5))
    assert float(cross_entropy(uniform)) == pytest.approx(np.log(5), abs=1e-4)


def test_loss_and_gradients_are_those_of_torch_for_any_number_of_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    n, d, k = 7, 3, 5
    some = Answers(
        student=torch.randn(n, d, requires_grad=True),
        teacher=torch.randn(n, d),
        student_directions=torch.randn(k, d, requires_grad=True),
        teacher_directions=torch.randn(k, d),
        weight=torch.rand(n),
        centre=torch.randn(k),
    )
    leaves = (some.student, some.student_directions)
    wanted = torch.softmax((some.teacher @ some.teacher_directions.T - some.centre) / 0.04, dim=-1)
    said = some.student @ some.student_directions.T / 0.1
    plain = F.cross_entropy(said, wanted, reduction="none") @ some.weight / some.weight.sum()
    expected = torch.autograd.grad(3 * plain, leaves)
    for at_once in (1, 2 * k, 100 * k):
        monkeypatch.setitem(dino.AT_ONCE, "cpu", at_once)
        found = cross_entropy(some)
        torch.testing.assert_close(found, plain)
        torch.testing.assert_close(torch.autograd.grad(3 * found, leaves), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(cross_entropy(some), found)
    frozen = cross_entropy(replace(some, student_directions=some.student_directions.detach()))
    torch.testing.assert_close(torch.autograd.grad(3 * frozen, some.student)[0], expected[0])
