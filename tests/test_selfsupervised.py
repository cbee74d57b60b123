"""Student, teacher and heads: what keeps short trainings from collapse, and the numbers in which collapse shows."""

import math
from dataclasses import replace

import pytest
import torch

from skysense_core import config
from skysense_core.data.batch import Series
from skysense_core.losses.dino import Answers, moved_centre
from skysense_core.modalities import load
from skysense_core.model import monitors
from skysense_core.model.heads import AnswerHead
from skysense_core.model.maps import maps_of, maps_of_views
from skysense_core.model.presets import PRESETS, ModelSpec, PrototypeSpec
from skysense_core.model.prototypes import Prototypes
from skysense_core.model.selfsupervised import MethodConfig, SelfSupervised
from skysense_core.model.skysense import SkySense

METHOD = {"hidden": 32, "answers": 64, "clusters": 2, "positions": 16}


def learning(steps: int = 10, **changes: object) -> SelfSupervised:
    torch.manual_seed(0)
    student = SkySense(ModelSpec(preset="nano", prototypes=True), {"s2": load("s2")})
    return SelfSupervised(student, config.build(MethodConfig, {**METHOD, **changes}), steps=steps)


def views(b: int, seed: int = 0) -> dict[str, object]:
    """Two views of places with a spectrum and a pattern of their own."""
    torch.manual_seed(seed)
    places = 1000 + 2000 * torch.rand(b, 1, 10, 1, 1) + 500 * torch.rand(b, 1, 10, 8, 8)
    numbers = torch.arange(64).view(1, 8, 8).repeat(b, 1, 1)

    def series(pixels: torch.Tensor) -> Series:
        b, t, _, h, w = pixels.shape
        return Series(
            pixels=pixels,
            valid=torch.ones(b, t, h, w, dtype=torch.bool),
            day_of_year=torch.full((b, t), 100),
            dated=torch.ones(b, t, dtype=torch.bool),
        )

    return {
        "views": [{"s2": series(places)}, {"s2": series(places.flip(4))}],
        "places": [numbers, numbers.flip(2)],
        "lonlat": torch.tensor([[10.0, 50.0]]).repeat(b, 1),
        "located": torch.ones(b, dtype=torch.bool),
        "global_views": 2,
    }


# Heads


def test_what_all_features_have_in_common_and_their_scale_do_not_reach_the_answers() -> None:
    torch.manual_seed(0)
    head = AnswerHead(6, hidden=16, bottleneck=8, answers=12)
    x, weight = torch.randn(40, 6), torch.ones(40)
    head.observe(x, weight)
    before, _ = head(x)
    shifted = 7 * x + torch.arange(6) * 10
    head.observe(shifted, weight)
    assert torch.allclose(head(shifted)[0], before, atol=1e-3)


def test_a_channel_in_which_nothing_differs_stays_small() -> None:
    head = AnswerHead(3, hidden=4, bottleneck=2, answers=5)
    x = torch.randn(20, 3) * torch.tensor([1.0, 1.0, 0.0])
    head.observe(x, torch.ones(20))
    x[:, 2] = 1e-3  # a little further than it ever was
    assert ((x - head.mean) / head.scale)[:, 2].abs().max() < 2e-3


def test_moments_of_heads_are_those_of_what_counts_and_stay_without_it() -> None:
    head = AnswerHead(3, hidden=4, bottleneck=2, answers=5)
    x = torch.randn(10, 3)
    weight = torch.tensor([1.0] * 6 + [0.0] * 4)
    head.observe(x, weight)
    assert torch.allclose(head.mean, x[:6].mean(0), atol=1e-6)
    assert torch.allclose(head.scale, (x[:6] - x[:6].mean(0)).square().mean().sqrt(), atol=1e-6)
    head.observe(x + 100, torch.zeros(10))
    assert torch.allclose(head.mean, x[:6].mean(0), atol=1e-6)
    head.observe(torch.ones(10, 3), weight)
    assert torch.isfinite(head(torch.ones(10, 3))[0]).all()


def test_two_views_of_one_place_are_not_scaled_up_to_noise() -> None:
    head = AnswerHead(6, hidden=16, bottleneck=8, answers=12)
    place = torch.randn(1, 6) + 10
    views = torch.cat([place, place + 1e-4 * torch.randn(1, 6)])
    head.observe(views, torch.ones(2))
    assert ((views - head.mean) / head.scale).abs().max() < 0.01


# Views


def test_views_of_one_size_give_the_same_maps_together_as_each_alone() -> None:
    one, given = learning(), views(2)
    small = given["views"][0]["s2"]
    small = replace(small, pixels=small.pixels[..., :4, :4], valid=small.valid[..., :4, :4])
    some, where = [*given["views"], {"s2": small}], (given["lonlat"], given["located"])
    together = maps_of_views(one.student, some, *where)
    for images, maps in zip(some, together, strict=True):
        for name, alone in maps_of(one.student, images, *where).items():
            torch.testing.assert_close(maps[name].tensor, alone.tensor, rtol=1e-4, atol=1e-4)
            assert torch.equal(maps[name].seen, alone.seen)


# Precision


def test_under_autocast_only_encoders_and_layers_of_heads_are_in_bfloat16() -> None:
    one, again, given = learning().train(), learning().train(), views(4)
    torch.manual_seed(0)  # of the places that are drawn
    exact = one(**given)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = again(**given)
        looked = again.inspect(given["views"][0], given["lonlat"], given["located"])
    assert all(value.dtype == torch.float32 for value in mixed.values())
    torch.stack(list(mixed.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in again.parameters() if p.grad is not None)
    for name, value in exact.items():
        assert float(mixed[name].detach()) == pytest.approx(float(value.detach()), rel=0.03)
    assert torch.allclose(again.centres, one.centres, atol=0.02)
    assert all(math.isfinite(value) for value in looked.values())


def test_moments_and_unit_vectors_are_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    x, weight = 100 + torch.randn(64, 6), torch.rand(64)
    alone, mixed = (AnswerHead(6, hidden=16, bottleneck=8, answers=12) for _ in range(2))
    alone.observe(x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed.observe(x, weight)
        said, directions = mixed(x)
    assert torch.equal(mixed.mean, alone.mean)
    assert torch.equal(mixed.scale, alone.scale)
    for unit in (said, directions):
        assert unit.dtype == torch.float32
        assert torch.allclose(unit.norm(dim=-1), torch.ones(len(unit)), atol=1e-6)


# Schedules of short runs


@pytest.mark.parametrize(("steps", "first"), [(100, 0.9), (1000, 0.985), (100_000, 0.996)])
def test_the_teacher_of_a_short_run_follows_faster(steps: int, first: float) -> None:
    one = learning(steps=steps)
    before = one.teacher.fusion.extra_token.clone()
    with torch.no_grad():
        one.student.fusion.extra_token += 1
    one.after_step(1)
    assert torch.allclose(one.teacher.fusion.extra_token, before + 1 - first, atol=1e-6)


def test_answers_lie_as_far_apart_in_small_models_as_in_large_ones() -> None:
    assert all(head.directions.shape == (64, 32) for head in learning().heads.values())
    assert min(PRESETS["huge"].channels // 4, 256) == 256  # METHOD 3
    assert all(head.directions.shape == (64, 8) for head in learning(bottleneck=8).heads.values())


def test_the_first_batch_sets_the_centres() -> None:
    one = learning().train()
    assert one.running_momentum() == 0
    one(**views(3))
    one.after_step(1)
    assert one.running_momentum() == 0.5
    one.step.fill_(50)
    assert one.running_momentum() == 0.9
    told = Answers(
        student=torch.zeros(4, 2),
        teacher=torch.randn(4, 2),
        student_directions=torch.zeros(3, 2),
        teacher_directions=torch.randn(3, 2),
        weight=torch.ones(4),
        centre=torch.ones(3),
    )
    assert torch.allclose(moved_centre(told, 0.0), (told.teacher @ told.teacher_directions.T).mean(0), atol=1e-6)


@pytest.mark.slow
def test_a_short_training_does_not_collapse() -> None:
    """Sixty steps on sixteen places: the teacher's answers tell the places apart, and better than at the start."""
    one, given = learning(steps=60).train(), views(16)
    look = (given["views"][0], given["lonlat"], given["located"])
    optimizer = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=1e-3)
    for step in range(60):
        total = torch.stack(list(one(**given).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        one.after_step(step + 1)
    found = one.eval().inspect(*look)
    for name in ("s2", "fused"):
        assert found[f"{name}.information"] > 0.3
        assert found[f"{name}.rank"] > 2


# Monitors


def test_information_is_nothing_in_both_kinds_of_collapse_and_all_where_every_image_has_its_answer() -> None:
    uniform = monitors.answers(torch.zeros(8, 16))
    assert uniform == pytest.approx({"entropy": 1.0, "information": 0.0}, abs=1e-6)
    constant = monitors.answers(100 * torch.eye(16)[:1].repeat(8, 1))
    assert constant == pytest.approx({"entropy": 0.0, "information": 0.0}, abs=1e-6)
    own = monitors.answers(100 * torch.eye(16)[:8])
    assert own == pytest.approx({"entropy": 0.0, "information": 1.0}, abs=1e-6)
    pairs = monitors.answers(100 * torch.eye(16)[:4].repeat(2, 1))
    assert pairs["information"] == pytest.approx(math.log(4) / math.log(8))


def test_rank_counts_directions() -> None:
    torch.manual_seed(0)
    directions = torch.linalg.qr(torch.randn(20, 3))[0]
    assert monitors.spread(torch.randn(2000, 3) @ directions.T)["rank"] == pytest.approx(3, abs=0.05)
    line = monitors.spread(torch.randn(50, 1) @ directions[:, :1].T + 7)
    assert line["rank"] == pytest.approx(1, abs=1e-3)
    assert monitors.spread(torch.ones(5, 4))["std"] == 0


def test_usage_of_prototypes_is_told_for_each_visited_region() -> None:
    one = Prototypes(PrototypeSpec(rows=2, columns=2, count=4), 4)
    one.prototypes[:] = torch.eye(4)
    lonlat, located = torch.tensor([[-90.0, -45.0], [90.0, -45.0], [90.0, 45.0]]), torch.tensor([True, True, True])
    x = torch.zeros(3, 4, 2, 2)
    x[0, 2] = 5.0  # all positions are nearest to one prototype
    x[1] = torch.eye(4).view(4, 2, 2)  # each to another
    seen = torch.ones(3, 2, 2, dtype=torch.bool)
    assert one.usage(x, seen, lonlat, located) == {}
    one.visited[:2] = True
    assert one.usage(x, seen, lonlat, located) == pytest.approx({0: 0.25, 1: 1.0})
    seen[1, 1] = False
    assert one.usage(x, seen, lonlat, located)[1] == pytest.approx(0.5)
    assert one.usage(x, seen, lonlat, torch.tensor([True, False, True])) == pytest.approx({0: 0.25})
