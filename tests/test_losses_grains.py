"""What two views are compared by: pixels, objects, images. Cells are paired by hand and by loops."""

import numpy as np
import pytest
import torch

from skysense_core.losses.grains import Pairs, Seen, image_pairs, object_pairs, pixel_pairs, pooled


def view(b: int = 2, t: int = 2, d: int = 3, side: tuple[int, int] = (4, 4), *, seed: int = 0) -> Seen:
    torch.manual_seed(seed)
    return Seen(tensor=torch.randn(b, t, d, *side), seen=torch.rand(b, t, *side) > 0.2)


def partners(b: int, n: int, m: int) -> torch.Tensor:
    """Random one-to-one partners, some cells without any."""
    torch.manual_seed(1)
    rows = [torch.randperm(max(n, m))[:n] for _ in range(b)]
    return torch.stack([torch.where(row < m, row, -1) for row in rows])


def everywhere(b: int, n: int) -> torch.Tensor:
    return torch.arange(n).expand(b, n)


def loop(student: Seen, teacher: Seen, partner: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """All pairs of seen cells, in order of sample, date, cell."""
    found = []
    (b, t, _, _, w), w2 = student.tensor.shape, teacher.tensor.shape[-1]
    for i in range(b):
        for date in range(t):
            for cell, other in enumerate(partner[i].tolist()):
                if other < 0:
                    continue
                here, there = (cell // w, cell % w), (other // w2, other % w2)
                if student.seen[i, date][here] and teacher.seen[i, date][there]:
                    first = student.tensor[i, date, :, here[0], here[1]]
                    second = teacher.tensor[i, date, :, there[0], there[1]]
                    found.append((first.numpy(), second.numpy()))
    return found


def counted(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    used = pairs.weight > 0
    return pairs.student[used].detach().numpy(), pairs.teacher[used].detach().numpy()


def test_pixels_are_paired_as_a_loop_pairs_them() -> None:
    student, teacher = view(side=(4, 2)), view(side=(3, 4), seed=5)
    partner = partners(2, 8, 12)
    first, second = counted(pixel_pairs(student, teacher, partner))
    expected = loop(student, teacher, partner)
    assert len(first) == len(expected) > 0
    assert np.array_equal(first, np.stack([a for a, _ in expected]))
    assert np.array_equal(second, np.stack([b for _, b in expected]))


def test_of_many_pixels_some_are_drawn_and_those_with_a_partner_first() -> None:
    student, teacher = view(b=1, t=1), view(b=1, t=1, seed=5)
    student.seen[:] = teacher.seen[:] = True
    partner = torch.full((1, 16), -1)
    partner[0, [3, 7, 11]] = torch.tensor([0, 5, 9])
    everything = {tuple(row) for row in counted(pixel_pairs(student, teacher, partner))[0]}
    drawn = [pixel_pairs(student, teacher, partner, most=2) for _ in range(30)]
    assert all(float(one.weight.sum()) == 2 and len(one.weight) == 2 for one in drawn)
    assert {tuple(row) for one in drawn for row in counted(one)[0]} == everything
    whole = pixel_pairs(student, teacher, partner, most=4)
    assert {tuple(row) for row in counted(whole)[0]} == everything
    assert float(whole.weight.sum()) == 3


def test_the_image_feature_is_the_mean_of_what_each_view_has_seen() -> None:
    student, teacher = view(), view(side=(2, 2), seed=5)
    teacher.seen[1, 0] = False
    pairs = image_pairs(student, teacher)
    for number in range(4):
        i, date = divmod(number, 2)
        expected = student.tensor[i, date][:, student.seen[i, date]].mean(1)
        assert torch.allclose(pairs.student[number], expected, atol=1e-6)
    assert pairs.weight.tolist() == [1, 1, 0, 1]
    assert torch.equal(pooled(teacher)[0][1, 0], torch.zeros(3))


def test_one_cluster_is_the_mean_of_the_common_cells() -> None:
    student, teacher, partner = view(), view(seed=5), partners(2, 16, 16)
    pairs = object_pairs(student, teacher, partner, clusters=1)
    common = [loop(*(Seen(tensor=v.tensor[i : i + 1, t : t + 1], seen=v.seen[i : i + 1, t : t + 1])
                     for v in (student, teacher)), partner[i : i + 1]) for i in range(2) for t in range(2)]  # fmt: skip
    for number, cells in enumerate(common):
        assert np.allclose(pairs.student[number], np.mean([a for a, _ in cells], axis=0), atol=1e-5)
        assert np.allclose(pairs.teacher[number], np.mean([b for _, b in cells], axis=0), atol=1e-5)


def test_identical_views_have_identical_features_at_every_level() -> None:
    one = view()
    same = everywhere(2, 16)
    for pairs in (pixel_pairs(one, one, same), object_pairs(one, one, same, clusters=3), image_pairs(one, one)):
        assert torch.equal(pairs.student, pairs.teacher)
        assert pairs.weight.sum() > 0


def test_objects_are_what_looks_alike_and_both_views_average_the_same_places() -> None:
    """Three fields of equal size, in stripes: the centres are the fields, also in a view that is turned and noisy."""
    fields = torch.eye(3).repeat_interleave(4, dim=0)  # 12 cells, rows are features
    student = Seen(tensor=(5 * fields).T.reshape(1, 1, 3, 3, 4), seen=torch.ones(1, 1, 3, 4, dtype=torch.bool))
    turned = fields.flip(0).T.reshape(1, 1, 3, 3, 4)
    teacher = Seen(tensor=turned + 0.01 * torch.randn_like(turned), seen=student.seen)
    partner = torch.arange(11, -1, -1)[None]
    pairs = object_pairs(student, teacher, partner, clusters=3)
    order = pairs.student.argmax(1)
    assert order.sort().values.tolist() == [0, 1, 2]
    assert torch.equal(pairs.teacher.argmax(1), order)
    assert torch.allclose(pairs.student, 5 * torch.eye(3)[order], atol=0.05)


def test_the_assignment_is_the_teachers_and_takes_no_gradient_but_the_centres_do() -> None:
    student, teacher, partner = view(), view(seed=5), partners(2, 16, 16)
    tensor = student.tensor.requires_grad_()
    pairs = object_pairs(Seen(tensor=tensor, seen=student.seen), teacher, partner, clusters=3)
    (pairs.student * pairs.weight[:, None]).sum().backward()
    # Each of three clusters spreads a weight of one over the cells, for each of two samples, two dates, three channels.
    assert float(tensor.grad.sum()) == pytest.approx(36, rel=1e-4)
    assert not tensor.grad[~student.seen[:, :, None].expand_as(tensor)].any()
    again = object_pairs(Seen(tensor=7 * tensor.detach(), seen=student.seen), teacher, partner, clusters=3)
    assert torch.allclose(again.student, 7 * pairs.student.detach(), atol=1e-5)
    assert torch.equal(again.teacher, pairs.teacher)


def test_views_without_a_common_place_have_no_weight_but_an_image_level() -> None:
    student, teacher = view(), view(seed=5)
    nowhere = torch.full((2, 16), -1)
    assert float(pixel_pairs(student, teacher, nowhere).weight.sum()) == 0
    objects = object_pairs(student, teacher, nowhere, clusters=3)
    assert float(objects.weight.sum()) == 0
    assert torch.equal(objects.student, torch.zeros(12, 3))
    assert float(image_pairs(student, teacher).weight.sum()) == 4


def test_fewer_cells_than_clusters_still_make_clusters_of_them() -> None:
    student, teacher = view(b=1, t=1), view(b=1, t=1, seed=5)
    student.seen[:] = teacher.seen[:] = True
    partner = torch.full((1, 16), -1)
    partner[0, 6] = 2
    pairs = object_pairs(student, teacher, partner, clusters=4)
    assert torch.allclose(pairs.student, student.tensor[0, 0, :, 1, 2].expand(4, 3), atol=1e-6)
    assert torch.allclose(pairs.teacher, teacher.tensor[0, 0, :, 0, 2].expand(4, 3), atol=1e-6)


def test_autocast_changes_nothing() -> None:
    student, teacher, partner = view(seed=2), view(seed=3), everywhere(2, 16)
    alone = object_pairs(student, teacher, partner, clusters=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = object_pairs(student, teacher, partner, clusters=3)
    assert torch.equal(mixed.student, alone.student)
    assert torch.equal(mixed.teacher, alone.teacher)
    assert torch.equal(mixed.weight, alone.weight)


def test_pairs_of_maps_in_bfloat16_are_float32() -> None:
    maps = [Seen(tensor=one.tensor.bfloat16(), seen=one.seen) for one in (view(seed=2), view(seed=3))]
    wide = [Seen(tensor=one.tensor.float(), seen=one.seen) for one in maps]
    for make in (lambda *two: object_pairs(*two, clusters=3), pixel_pairs):
        narrow, exact = make(*maps, everywhere(2, 16)), make(*wide, everywhere(2, 16))
        assert torch.equal(narrow.student, exact.student)
    assert torch.equal(image_pairs(*maps).teacher, image_pairs(*wide).teacher)
