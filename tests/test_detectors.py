"""Detectors: features of rotated boxes are those of the map there, and both heads learn and find."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.ops import roi_align

from skysense_core import modalities
from skysense_core.data.batch import Batch, Series
from skysense_core.losses.boxes import corners_of
from skysense_core.model.detectors import Detector, FasterRcnn, Truth
from skysense_core.model.oriented import SIDE, OrientedRcnn, rotated_align
from skysense_core.model.presets import ModelSpec
from skysense_core.model.pyramid import Pyramid
from skysense_core.model.skysense import SkySense

SETTINGS = {"scale": 4.0, "score": 0.05, "overlap": 0.3, "most": 50}


def maps(count: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {str(level): torch.randn(count, 3, 64 >> level, 64 >> level) for level in range(5)}


def test_features_of_upright_boxes_are_torchvisions() -> None:
    pyramid = maps(2)
    bounds = [torch.tensor([[20.0, 30, 90, 70], [101.5, 40.25, 131, 99]]), torch.tensor([[60.0, 60, 100, 130]])]
    rois = [torch.cat([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2], 0 * b[:, :1]], dim=1) for b in bounds]
    expected = roi_align(pyramid["0"], bounds, SIDE, spatial_scale=1 / 4, sampling_ratio=2, aligned=True)
    torch.testing.assert_close(rotated_align(pyramid, rois, stride=4), expected, atol=1e-5, rtol=1e-5)


def test_large_boxes_are_read_from_coarse_maps() -> None:
    pyramid = {name: torch.full_like(x, float(name)) for name, x in maps().items()}
    sides = torch.tensor([20.0, 111, 113, 225, 500, 2000])
    rois = torch.stack([0 * sides + 128, 0 * sides + 128, sides, sides, 0 * sides], dim=1)
    assert rotated_align(pyramid, [rois], stride=4)[:, 0, 3, 3].tolist() == [0, 0, 1, 2, 3, 3]


def test_features_turn_with_the_box() -> None:
    """A box turned by a quarter reads the same samples in another order."""
    pyramid = maps()
    upright = torch.tensor([[120.0, 110, 80, 80, 0]])
    turned = upright + torch.tensor([0, 0, 0, 0, math.pi / 2])
    one, other = (rotated_align(pyramid, [rois], stride=4) for rois in (upright, turned))
    torch.testing.assert_close(other, one.rot90(1, dims=(2, 3)), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(one, other, atol=0.1)


def detector(finder: type[nn.Module], *names: str) -> Detector:
    torch.manual_seed(0)
    wanted = {name: modalities.load(name, {"gsd": 0.3125} if name == "hr" else {"dates": 1}) for name in names}
    encoder = SkySense(ModelSpec(preset="nano", fusion=len(names) > 1), wanted)
    pyramid = Pyramid(encoder, 16, fuse=len(names) > 1)
    return Detector(encoder, pyramid, finder(16, 2, stride=pyramid.stride, **SETTINGS))


def batch_of(*names: str, count: int = 2, side: int = 128) -> Batch:
    """White slabs on grey ground, as `truths` says."""
    images = {}
    for name in names:
        bands, size = (3, side) if name == "hr" else (10, side // 32 if "hr" in names else side)
        pixels = torch.full((count, 1, bands, size, size), 100.0)
        if name == names[0]:
            pixels[..., 40:56, 30:62] = 250.0
            pixels[..., 90:106, 70:102] = 10.0
        images[name] = Series(
            pixels=pixels,
            valid=torch.ones(count, 1, size, size, dtype=torch.bool),
            day_of_year=torch.ones(count, 1, dtype=torch.int64),
            dated=torch.zeros(count, 1, dtype=torch.bool),
        )
    return Batch(
        ids=("x",) * count,
        epochs=(images,),
        lonlat=torch.zeros(count, 2),
        located=torch.zeros(count, dtype=torch.bool),
    )


def truths() -> list[Truth]:
    rotated = torch.tensor([[46.0, 48, 32, 16, 0], [86.0, 98, 32, 16, 0]])
    full = Truth(corners=corners_of(rotated), codes=torch.tensor([0, 1]))
    return [full, Truth(corners=full.corners[:0], codes=full.codes[:0])]


@pytest.mark.parametrize("finder", [FasterRcnn, OrientedRcnn])
@pytest.mark.parametrize("names", [("hr",), ("hr", "s2"), ("s2",)])
def test_every_part_learns_also_beside_an_image_without_objects(
    finder: type[nn.Module], names: tuple[str, ...]
) -> None:
    model = detector(finder, *names).eval()
    _, losses = model(batch_of(*names), truths())
    assert len(losses) == 4
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # The box head reads four maps, and of the encoder's last level a fused map takes the place.
    assert [name for name in still if "encoder" not in name] == []
    empty = replace(truths()[1])
    _, losses = model(batch_of(*names), [empty, empty])
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.slow
@pytest.mark.parametrize("finder", [FasterRcnn, OrientedRcnn])
def test_a_few_steps_find_the_slabs_of_one_image(finder: type[nn.Module]) -> None:
    model, batch, truth = detector(finder, "hr"), batch_of("hr", count=1), truths()[:1]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(100):
        _, losses = model(batch, truth)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = model(batch)[0][0]
    best = [found.corners[found.codes == code][0] for code in (0, 1)]
    for corners, code in zip(best, (0, 1), strict=True):
        wanted = truth[0].corners[code]
        assert (corners.amin(dim=0) - wanted.amin(dim=0)).abs().max() < 5
        assert (corners.amax(dim=0) - wanted.amax(dim=0)).abs().max() < 5
    assert (found.scores[:-1] >= found.scores[1:]).all()
    assert (found.corners.mean(dim=1) >= 0).all()
