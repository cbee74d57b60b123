"""Samples on their way to the model: crops, turns, dates, order, statistics. Rasters hold their own coordinates."""

import itertools
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from skysense_core import modalities
from skysense_core.data import statistics, transforms
from skysense_core.data.chips import Augment, EvaluationChips, TrainingChips
from skysense_core.data.loader import Order, evaluation_loader, label_fraction, training_loader
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.blocks import cover
from skysense_core.modalities import Modality
from skysense_core.types import IGNORE, ClassMap, Label, Raster, Sample

HR, S2 = modalities.load("hr", {"window": 128}), modalities.load("s2", {"window": 8, "dates": 2})
S2_ALONE: Mapping[str, Modality] = {"s2": S2}
BOTH: Mapping[str, Modality] = {"hr": HR, "s2": S2}


def grid(height: int, width: int, pixel: float) -> GeoBox:
    return GeoBox((height, width), Affine(pixel, 0, 300000, 0, -pixel, 5800000), "EPSG:32633")


def coordinates(geobox: GeoBox, dates: int = 1) -> Raster:
    """Bands: x and y of the pixel centre, in every date."""
    cols, rows = np.meshgrid(np.arange(geobox.shape.x) + 0.5, np.arange(geobox.shape.y) + 0.5)
    pixels = np.stack(geobox.affine * (cols, rows))
    return Raster(
        pixels=np.repeat(pixels[None], dates, axis=0),
        valid=np.ones((dates, *geobox.shape), dtype=bool),
        days=17000 + 10 * np.arange(dates),
        dated=np.ones(dates, dtype=bool),
        geobox=geobox,
    )


def sample_of(cells: tuple[int, int] = (12, 16), dates: int = 5, *, hr: bool = True) -> Sample:
    """hr at 0.3125 m (x 32) beside s2 at 10 m; the label numbers the 10 m pixels modulo 251."""
    height, width = cells
    rasters = {"s2": coordinates(grid(height, width, 10.0), dates)}
    codes = (np.arange(height * width) % 251).astype(np.uint8).reshape(height, width)
    reference = rasters["s2"].geobox
    if hr:
        reference = grid(height * 32, width * 32, 0.3125)
        rasters["hr"] = coordinates(reference)
        codes = codes.repeat(32, axis=0).repeat(32, axis=1)
    return Sample(id="a", epochs=(rasters,), lonlat=(12.0, 52.0), label=ClassMap(codes=codes, geobox=reference))


def shows_its_place(raster: Raster) -> bool:
    """Whether valid pixels still hold the coordinates that their grid gives them."""
    truth = coordinates(raster.geobox).pixels[0]
    return all(np.allclose(image[:, ok], truth[:, ok]) for image, ok in zip(raster.pixels, raster.valid, strict=True))


@dataclass(frozen=True)
class Drawn:
    """A split of one-date samples of s2; a pixel is 1000 x sample + its number, the label its number modulo 3."""

    count: int = 10
    side: tuple[int, int] = (20, 13)
    classes: tuple[str, ...] = ("a", "b", "c")
    colours: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    broken: int = -1

    def __len__(self) -> int:
        return self.count

    def size(self, index: int) -> tuple[int, int]:
        return self.side

    def label(self, index: int) -> ClassMap:
        height, width = self.side
        codes = np.arange(height * width).reshape(height, width) % 3
        return ClassMap(codes=codes.astype(np.uint8))

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            raise SkysenseError("s3.tif: cut short", fix="Fetch it again.")
        height, width = self.side
        numbers = index * 1000 + np.arange(height * width).reshape(height, width)
        raster = Raster(
            pixels=np.repeat(numbers[None, None], 10, axis=1),
            valid=np.ones((1, height, width), dtype=bool),
            days=np.array([17000]),
            dated=np.ones(1, dtype=bool),
        )
        return Sample(id=str(index), epochs=({"s2": raster},), label=self.label(index))


def encode(label: Label, shape: tuple[int, int]) -> np.ndarray:
    assert label.codes.shape == shape
    return label.codes


def training(split: Drawn, augment: Augment | None = None, seed: int = 3) -> TrainingChips:
    return TrainingChips(split, S2_ALONE, encode, augment=augment or Augment(), seed=seed)


# Transforms


@given(row=st.integers(0, 8), col=st.integers(0, 12), height=st.integers(1, 16), width=st.integers(1, 20))
def test_a_crop_shows_the_same_ground_in_every_modality(row: int, col: int, height: int, width: int) -> None:
    sample = sample_of()
    part = transforms.crop(sample, "hr", row=row * 32, col=col * 32, height=height * 32, width=width * 32)
    (images,) = part.epochs
    assert images["s2"].pixels.shape == (5, 2, height, width)
    assert images["hr"].pixels.shape == (1, 2, height * 32, width * 32)
    assert images["hr"].geobox.extent.boundingbox == images["s2"].geobox.extent.boundingbox
    assert all(shows_its_place(raster) for raster in images.values())
    inside = min(height, 12 - row) * min(width, 16 - col)
    assert images["s2"].valid[0].sum() == max(inside, 0)
    assert (part.label.codes != IGNORE).sum() == inside * 1024
    assert part.label.geobox == images["hr"].geobox


def test_a_crop_off_the_coarse_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="no whole pixels"):
        transforms.crop(sample_of(), "hr", row=16, col=0, height=32, width=32)


@pytest.mark.parametrize("flags", itertools.product([False, True], repeat=3))
def test_a_turn_is_the_same_for_everything_and_keeps_the_place(flags: tuple[bool, bool, bool]) -> None:
    transpose, flip_rows, flip_cols = flags
    sample = sample_of((4, 6))
    turned = transforms.turn(sample, transpose=transpose, flip_rows=flip_rows, flip_cols=flip_cols)
    (images,) = turned.epochs
    assert images["s2"].pixels.shape[-2:] == ((6, 4) if transpose else (4, 6))
    assert all(shows_its_place(raster) for raster in images.values())
    # The label of a pixel is that of its ground: found again through the grids.
    x, y = turned.label.geobox.affine * (33.5, 70.5)
    col, row = ~sample.label.geobox.affine * (x, y)
    assert turned.label.codes[70, 33] == sample.label.codes[int(row), int(col)]


def test_the_eight_turns_are_eight_and_all_drawn() -> None:
    sample = sample_of((4, 4), hr=False)
    drawn = {transforms.random_turn(sample, np.random.default_rng(n)).label.codes.tobytes() for n in range(100)}
    assert len(drawn) == 8


def test_random_crops_reach_every_aligned_place() -> None:
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(300):
        part = transforms.random_crop(sample_of((6, 5), dates=1), "hr", 128, rng)
        assert part.label.codes.shape == (128, 128)
        corners.add(part.label.geobox.affine[2::3])
    assert len(corners) == 3 * 2


def test_a_small_sample_is_padded_as_invalid() -> None:
    part = transforms.random_crop(sample_of((3, 2), hr=False), "s2", 8, np.random.default_rng(0))
    assert part.epochs[0]["s2"].valid.sum() == 5 * 6
    assert (part.label.codes != IGNORE).sum() == 6


def test_dates_are_a_sorted_subset_without_empty_ones() -> None:
    sample = sample_of((4, 4), dates=9, hr=False)
    sample.epochs[0]["s2"].valid[[2, 5]] = False
    seen = set()
    for n in range(60):
        days = transforms.subsample_dates(sample, {"s2": 3}, np.random.default_rng(n)).epochs[0]["s2"].days
        assert sorted(set(days)) == days.tolist()
        assert len(days) == 3
        seen |= set(days.tolist())
    assert seen == set((17000 + 10 * np.array([0, 1, 3, 4, 6, 7, 8])).tolist())
    even = transforms.subsample_dates(sample, {"s2": 3}).epochs[0]["s2"].days
    assert even.tolist() == [17000, 17040, 17080]
    assert len(transforms.subsample_dates(sample, {"s2": 20}).epochs[0]["s2"].days) == 7


def test_dates_are_dropped_with_their_chance_and_one_stays() -> None:
    sample = sample_of((4, 4), dates=10, hr=False)
    raster, rng = sample.epochs[0]["s2"], np.random.default_rng(0)
    counts = []
    for _ in range(400):
        kept = transforms.drop_dates(sample, 0.4, rng).epochs[0]["s2"]
        at = np.searchsorted(raster.days, kept.days)
        np.testing.assert_array_equal(kept.days, raster.days[at])
        np.testing.assert_array_equal(kept.pixels, raster.pixels[at])
        counts.append(len(at))
    assert abs(np.mean(counts) - 6) < 0.3  # four standard errors
    assert {len(transforms.drop_dates(sample, 0.999, rng).epochs[0]["s2"].days) for _ in range(50)} == {1}


def test_training_leaves_dates_out_where_it_is_asked_to() -> None:
    class Season(Drawn):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            one = sample.epochs[0]["s2"]
            ten = {name: np.repeat(getattr(one, name), 10, axis=0) for name in ("pixels", "valid", "dated")}
            return replace(sample, epochs=({"s2": replace(one, days=17000 + np.arange(10), **ten)},))

    def shown(augment: Augment) -> float:
        season = {"s2": replace(S2, dates=10)}
        chips = TrainingChips(Season(), season, encode, augment=augment, seed=3)
        return float(np.mean([len(chips[0, draw][0].epochs[0]["s2"].days) for draw in range(20)]))

    assert shown(Augment()) == 10
    assert 3 < shown(Augment(dates=0.5)) < 7


def test_a_series_without_a_valid_pixel_keeps_one_date() -> None:
    sample = sample_of((4, 4), dates=3, hr=False)
    sample.epochs[0]["s2"].valid[:] = False
    assert len(transforms.subsample_dates(sample, {"s2": 2}, np.random.default_rng(0)).epochs[0]["s2"].days) == 1


@pytest.mark.parametrize("side", [192, 256, 320])
def test_a_zoomed_sample_shows_the_same_ground(side: int) -> None:
    sample = sample_of((8, 8))
    zoomed = transforms.zoom(sample, "hr", side)
    for name, raster in zoomed.epochs[0].items():
        assert raster.geobox is not None
        assert raster.geobox.extent.geom.equals_exact(sample.epochs[0][name].geobox.extent.geom, 1e-6)
        inner = replace(raster, pixels=raster.pixels[..., 2:-2, 2:-2], valid=raster.valid[..., 2:-2, 2:-2])
        expected = coordinates(raster.geobox).pixels[..., 2:-2, 2:-2]
        np.testing.assert_allclose(inner.pixels, np.repeat(expected, len(inner.pixels), 0), atol=1e-6)
    assert zoomed.label is not None
    at = ((np.arange(side) + 0.5) * 256 / side).astype(int)
    np.testing.assert_array_equal(zoomed.label.codes, sample.label.codes[at][:, at])


def test_zooming_makes_nothing_valid_out_of_invalid_pixels() -> None:
    sample = sample_of((8, 8), hr=False)
    raster = sample.epochs[0]["s2"]
    valid = raster.valid.copy()
    valid[:, 3, 4] = False
    junk = np.where(valid[:, None], raster.pixels, np.nan)
    zoomed = transforms.zoom(replace(sample, epochs=({"s2": replace(raster, pixels=junk, valid=valid)},)), "s2", 20)
    found = zoomed.epochs[0]["s2"]
    assert 0 < (~found.valid).sum() < found.valid.size / 4
    assert np.isfinite(found.pixels[np.repeat(found.valid[:, None], 2, 1)]).all()


def test_random_zoom_gives_windows_of_one_size_with_pixels_of_many() -> None:
    rng, sizes = np.random.default_rng(0), []
    for _ in range(20):
        found = transforms.random_zoom(sample_of((16, 16), hr=False), "s2", 8, 1.5, rng).epochs[0]["s2"]
        assert found.pixels.shape[-2:] == (8, 8)
        assert found.geobox is not None
        sizes.append(found.geobox.resolution.x)
    assert 10 / 1.5 - 1 < min(sizes) < 9
    assert 11 < max(sizes) <= 15


def test_colour_changes_every_band_on_its_own_and_haze_pulls_all_towards_one_brightness() -> None:
    s2 = S2.with_bands(("B02", "B08"))
    mean, std = (values[:, None, None] for values in (s2.mean, s2.std))
    sample = sample_of((4, 4), dates=3, hr=False)
    z = np.random.default_rng(0).normal(size=(3, 2, 4, 4))
    sample = replace(sample, epochs=({"s2": replace(sample.epochs[0]["s2"], pixels=z * std + mean)},))

    def lines(change: Callable[..., Sample], strength: float) -> np.ndarray:
        """Gain and bias of every date and band."""
        changed = change(sample, {"s2": s2}, strength, np.random.default_rng(1)).epochs[0]["s2"].pixels
        after = (changed - mean) / std
        return np.array([[np.polyfit(z[t, c].ravel(), after[t, c].ravel(), 1) for c in range(2)] for t in range(3)])

    gain = lines(transforms.random_colour, 0.2)[..., 0]
    assert (np.abs(gain - 1) <= 0.2).all()
    assert len(set(gain.ravel().round(4))) == 6
    gain, bias = np.moveaxis(lines(transforms.random_haze, 0.6), -1, 0)
    assert gain.min() >= 0.4
    assert gain.max() <= 1
    assert np.allclose(gain[:, 0], gain[:, 1], atol=1e-4), "a veil is of no colour"
    assert len(set(gain[:, 0].round(4))) == 3
    assert np.allclose(bias, transforms.VEIL * (1 - gain), atol=1e-3)


def test_contrast_is_one_affine_map_per_image_in_normalised_units() -> None:
    s2 = S2.with_bands(("B02", "B08"))
    sample = sample_of((4, 4), dates=3, hr=False)
    changed = transforms.random_contrast(sample, {"s2": s2}, 0.2, np.random.default_rng(1)).epochs[0]["s2"]
    assert changed.pixels.dtype == np.float32

    def normalised(raster: Raster) -> np.ndarray:
        return (raster.pixels - s2.mean[:, None, None]) / s2.std[:, None, None]

    before, after = normalised(sample.epochs[0]["s2"]), normalised(changed)
    gains = set()
    for old, new in zip(before, after, strict=True):
        gain, bias = np.polyfit(old.ravel(), new.ravel(), 1)
        assert abs(gain - 1) <= 0.2
        assert np.allclose(old * gain + bias, new, atol=0.05)
        gains.add(round(gain, 3))
    assert len(gains) == 3


# Chips


@given(side=st.integers(1, 70), window=st.integers(1, 30))
def test_windows_cover_every_pixel_and_count_it_once(side: int, window: int) -> None:
    counted = np.zeros(max(side, window), dtype=int)
    for start, seen in cover(side, window):
        assert start >= 0
        assert start + window <= max(side, window)
        counted[start + seen : start + window] += 1
    assert (counted == 1).all()


@pytest.mark.parametrize("side", [(16, 24), (20, 13), (5, 30), (3, 3)])
def test_evaluation_counts_every_labelled_pixel_once(side: tuple[int, int]) -> None:
    split = Drawn(count=2, side=side)
    found: list[int] = []
    for sample, target in map(EvaluationChips(split, S2_ALONE, encode).__getitem__, range(100)):
        assert target.shape == (min(8, -(-max(side) // 4) * 4),) * 2  # no larger than the largest sample needs
        found += sample.epochs[0]["s2"].pixels[0, 0][target != IGNORE].tolist()
        if len(found) == 2 * side[0] * side[1]:
            break
    expected = [index * 1000 + pixel for index in range(2) for pixel in range(side[0] * side[1])]
    assert sorted(found) == expected


def test_a_patch_of_128_is_four_windows_of_64() -> None:
    chips = EvaluationChips(Drawn(count=1, side=(128, 128)), {"s2": modalities.load("s2")}, encode)
    assert len(chips) == 4
    assert all((target != IGNORE).all() for _, target in (chips[n] for n in range(4)))


def test_what_the_reference_does_not_show_is_not_learned() -> None:
    class Clouded(Drawn):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            sample.epochs[0]["s2"].valid[:, 2:4, :8] = False
            return sample

    _, target = EvaluationChips(Clouded(count=1), S2_ALONE, encode)[0]
    assert (target[2:4] == IGNORE).all()
    assert (target[:2] != IGNORE).all()


def test_a_training_chip_depends_on_its_key_alone() -> None:
    one, other = training(Drawn(side=(40, 40))), training(Drawn(side=(40, 40)))
    _ = one[4, 0]
    (a, x), (b, y) = one[7, 12345], other[7, 12345]
    assert (a.epochs[0]["s2"].pixels == b.epochs[0]["s2"].pixels).all()
    assert (x == y).all()
    assert not (a.epochs[0]["s2"].pixels == one[7, 12346][0].epochs[0]["s2"].pixels).all()
    assert a.epochs[0]["s2"].pixels.shape == (1, 10, 8, 8)


def test_small_data_are_read_once_and_large_ones_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []

    class Counted(Drawn):
        def __getitem__(self, index: int) -> Sample:
            reads.append(index)
            return super().__getitem__(index)

    chips = training(Counted())
    first = [chips[index, index] for index in (0, 1, 2, 0, 1, 2)]
    assert reads == [0, 1, 2]
    assert (first[0][1] == first[3][1]).all()
    size = sum(raster.pixels.nbytes + raster.valid.nbytes for raster in Drawn()[0].epochs[0].values())
    monkeypatch.setattr("skysense_core.data.chips.KEEP", 2 * size)
    chips, reads[:] = training(Counted()), []
    for index in (0, 1, 2, 0, 1, 2):
        _ = chips[index, index]
    assert reads == [0, 1, 2, 2]


def test_windows_that_do_not_fit_the_encoders_are_refused() -> None:
    with pytest.raises(UsageError, match="multiples of 4 pixels"):
        TrainingChips(Drawn(), {"s2": replace(S2, window=10)}, encode, augment=Augment(), seed=0)
    with pytest.raises(UsageError, match="multiples of 128 pixels") as error:
        EvaluationChips(Drawn(), {**BOTH, "hr": replace(HR, window=500)}, encode)
    assert "512" in str(error.value)


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(SkysenseError, match="empty"):
        training(Drawn(count=0))
    with pytest.raises(SkysenseError, match="empty"):
        EvaluationChips(Drawn(count=0), S2_ALONE, encode)


# Order


def flat(order: Order, batches: int) -> list[tuple[int, int]]:
    return [key for keys in itertools.islice(order, batches) for key in keys]


def test_the_order_does_not_depend_on_batch_size_or_processes() -> None:
    whole = flat(Order(7, batch_size=1, seed=5, start=0), 48)
    assert flat(Order(7, batch_size=4, seed=5, start=0), 12) == whole
    parts = [itertools.islice(Order(7, batch_size=2, seed=5, start=0, rank=rank, world=3), 8) for rank in range(3)]
    assert [key for steps in zip(*parts, strict=True) for keys in steps for key in keys] == whole
    for epoch in range(6):
        assert sorted(index for index, _ in whole[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert [draw for _, draw in whole] == list(range(48))
    assert whole[:7] != [(index, draw - 7) for index, draw in whole[7:14]]
    assert flat(Order(7, batch_size=1, seed=6, start=0), 48) != whole


@pytest.mark.parametrize("start", [1, 5, 11])
def test_the_order_goes_on_from_any_step(start: int) -> None:
    whole = flat(Order(7, batch_size=4, seed=5, start=0), 20)
    assert flat(Order(7, batch_size=4, seed=5, start=start), 20 - start) == whole[start * 4 :]


def test_batches_are_the_same_with_and_without_workers_and_after_a_resume() -> None:
    chips = training(Drawn(), Augment(contrast=0.1))
    alone = list(itertools.islice(training_loader(chips, batch_size=4, start=0, workers=0), 6))
    for start, workers in ((3, 0), (2, 2)):
        again = list(itertools.islice(training_loader(chips, batch_size=4, start=start, workers=workers), 6 - start))
        for one, other in zip(alone[start:], again, strict=True):
            assert one.ids == other.ids
            assert torch.equal(one.epochs[0]["s2"].pixels, other.epochs[0]["s2"].pixels)
            assert torch.equal(one.target, other.target)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_sample_is_one_clear_error(workers: int) -> None:
    batches = training_loader(training(Drawn(broken=3)), batch_size=5, start=0, workers=workers)
    with pytest.raises(SkysenseError) as error:
        list(itertools.islice(batches, 2))
    assert str(error.value) == "s3.tif: cut short\nFetch it again."


def test_evaluation_shows_every_window_in_order() -> None:
    chips = EvaluationChips(Drawn(count=3, side=(8, 16)), S2_ALONE, encode)
    batches = list(evaluation_loader(chips, batch_size=4, workers=0))
    assert [len(batch.ids) for batch in batches] == [4, 2]
    assert batches[0].ids == ("0@0,0", "0@0,8", "1@0,0", "1@0,8")


def test_label_fractions_are_nested_and_reproducible() -> None:
    split = Drawn(count=400)
    chosen = [set(label_fraction(split, share, seed=2).indices) for share in (0.0001, 0.01, 0.1, 0.5, 1.0)]
    assert [len(part) for part in chosen] == [1, 4, 40, 200, 400]
    assert all(small < large for small, large in itertools.pairwise(chosen))
    assert chosen[2] == set(label_fraction(split, 0.1, seed=2).indices)
    assert chosen[2] != set(label_fraction(split, 0.1, seed=3).indices)
    part = label_fraction(split, 0.01, seed=2)
    assert [part[n].id for n in range(4)] == [str(index) for index in part.indices]
    assert len(pickle.loads(pickle.dumps(part))) == 4
    with pytest.raises(UsageError, match="label-fraction"):
        label_fraction(split, 0.0, seed=2)


# Statistics


def test_statistics_are_those_of_all_valid_pixels_at_once() -> None:
    rng = np.random.default_rng(0)

    class Noise(Drawn):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            raster = sample.epochs[0]["s2"]
            pixels = np.random.default_rng(index).normal(5000 + index, 3, raster.pixels.shape).astype(np.float32)
            valid = np.random.default_rng(index).random(raster.valid.shape) < 0.5
            return replace(
                sample, epochs=({"s2": replace(raster, pixels=np.where(valid, pixels, np.nan), valid=valid)},)
            )

    split = Noise(count=6)
    measured = statistics.measure_bands(split)["s2"]
    rasters = [split[n].epochs[0]["s2"] for n in range(6)]
    pixels = np.concatenate([raster.pixels[0][:, raster.valid[0]] for raster in rasters], axis=1).astype(np.float64)
    assert measured.count == pixels.shape[1]
    assert measured.mean == pytest.approx(pixels.mean(axis=1), rel=1e-12)
    assert measured.std == pytest.approx(pixels.std(axis=1), rel=1e-9)
    del rng


def test_statistics_of_no_valid_or_constant_pixels_are_refused() -> None:
    class Blank(Drawn):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            sample.epochs[0]["s2"].valid[:] = False
            return sample

    class Flat(Drawn):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            sample.epochs[0]["s2"].pixels[:, 2] = 7
            return sample

    with pytest.raises(SkysenseError, match="s2: no valid pixel"):
        statistics.measure_bands(Blank())
    with pytest.raises(SkysenseError, match="s2: band 3 has one value"):
        statistics.measure_bands(Flat())


def test_class_counts() -> None:
    assert statistics.count_classes(Drawn(count=5, side=(2, 5))).tolist() == [20, 15, 15]
    assert statistics.count_classes(Drawn(count=5, side=(2, 5)), most=2).tolist() == [8, 6, 6]
