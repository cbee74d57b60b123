"""Views for self-supervised training. Pixels hold their own coordinates, so that every cell can say what it shows."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data import grid

from skysense_core import config, modalities, runtime
from skysense_core.data.batch import collate
from skysense_core.data.loader import training_loader
from skysense_core.data.views import ViewChips, ViewConfig, Views, blur, draw_views, picture, places_of
from skysense_core.errors import SkysenseError, UsageError
from skysense_core.losses.grains import partners
from skysense_core.types import ClassMap, Raster, Sample

ALL = {name: modalities.load(name, {"dates": 3}) for name in ("hr", "s2", "s1")}
PIXELS = {"hr": 32, "s2": 1, "s1": 1}
"""Per cell."""
PLAIN = ViewConfig(global_cells=8, local_cells=4, window_cells=12, blur=0.0, solarise=0.0, colour=0.0, grey=0.0)
PICTURES = replace(PLAIN, blur=1.0, colour=1.0, grey=0.5, solarise=0.5)


def raster(name: str, cells: tuple[int, int], dates: int) -> Raster:
    """Bands: row and column of the pixel's centre in cells, then date."""
    height, width = (side * PIXELS[name] for side in cells)
    rows, cols = (np.mgrid[:height, :width] + 0.5) / PIXELS[name]
    bands = [np.stack([rows, cols, np.full_like(rows, date)]) for date in range(dates)]
    return Raster(
        pixels=np.stack(bands).astype(np.float32),
        valid=np.ones((dates, height, width), dtype=bool),
        days=17000 + 20 * np.arange(dates),
        dated=np.ones(dates, dtype=bool),
        geobox=grid(height, width, 10 / PIXELS[name]),
    )


def sample_of(names: tuple[str, ...], cells: tuple[int, int] = (20, 14)) -> Sample:
    rasters = {name: raster(name, cells, 1 if name == "hr" else 5) for name in names}
    codes = np.zeros([side * PIXELS[names[0]] for side in cells], dtype=np.uint8)
    return Sample(id="a", epochs=(rasters,), lonlat=(12.0, 52.0), label=ClassMap(codes=codes))


def draw(sample: Sample, settings: ViewConfig = PLAIN, seed: int = 0) -> Views:
    return draw_views(sample, ALL, settings, np.random.default_rng(seed))


def shown(found: Raster, name: str) -> np.ndarray:
    """(t, rows, columns, 2): which cell each cell's pixels come from, by their coordinates; -1 where invalid."""
    side = PIXELS[name]
    t, _, h, w = found.pixels.shape
    blocks = found.pixels[:, :2].reshape(t, 2, h // side, side, w // side, side)
    least = np.floor(blocks.min((3, 5))).transpose(0, 2, 3, 1)
    assert np.array_equal(least, np.floor(blocks.max((3, 5))).transpose(0, 2, 3, 1)), "a cell mixes places"
    valid = found.valid.reshape(t, h // side, side, w // side, side).any((2, 4))
    return np.where(valid[..., None], least, -1)


@settings(max_examples=40, deadline=None)
@given(
    names=st.sampled_from([("hr",), ("s2",), ("s1",), ("hr", "s2"), ("s2", "s1"), ("hr", "s2", "s1")]),
    cells=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    seed=st.integers(0, 1000),
)
def test_every_cell_of_every_modality_shows_the_place_of_its_number(
    names: tuple[str, ...], cells: tuple[int, int], seed: int
) -> None:
    views = draw(sample_of(names, cells), seed=seed)
    assert len(views.sample.epochs) == len(views.places) == 6
    for side, places, epoch in zip(PLAIN.sides, views.places, views.sample.epochs, strict=True):
        assert places.shape == (side, side)
        assert tuple(epoch) == names
        row, col = np.where(places < 0, -1, places // cells[1]), np.where(places < 0, -1, places % cells[1])
        for name, found in epoch.items():
            assert found.pixels.shape[-2:] == (side * PIXELS[name],) * 2
            for image in shown(found, name):
                assert np.array_equal(image, np.stack([row, col], axis=-1))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), turns=st.booleans(), small=st.booleans())
def test_paired_cells_show_the_same_ground_and_unpaired_ones_no_common_one(seed: int, turns: bool, small: bool) -> None:
    samples = [sample_of(("hr", "s2"), cells) for cells in (((5, 9), (7, 3)) if small else ((20, 14), (14, 20)))]
    drawn = [draw(sample, replace(PLAIN, turns=turns), seed + n) for n, sample in enumerate(samples)]
    for u, v in ((0, 1), (2, 0), (5, 2), (1, 1)):
        pairs = partners(*(torch.from_numpy(np.stack([views.places[i] for views in drawn])) for i in (u, v)))
        for views, found in zip(drawn, pairs, strict=True):
            here, there = (shown(views.sample.epochs[i]["s2"], "s2")[0].reshape(-1, 2) for i in (u, v))
            for cell, other in enumerate(found.tolist()):
                if other >= 0:
                    assert np.array_equal(here[cell], there[other])
                    assert here[cell][0] >= 0
                else:
                    assert here[cell][0] < 0 or not (there == here[cell]).all(1).any()


def test_partners_by_hand() -> None:
    here = torch.tensor([[[0, 1], [4, 5]], [[3, -1], [-1, -1]]])
    there = torch.tensor([[[5, 9], [1, -1]], [[-1, -1], [-1, 7]]])
    assert partners(here, there).tolist() == [[-1, 2, -1, 0], [-1, -1, -1, -1]]


def test_a_view_with_itself_is_paired_cell_by_cell_and_large_crops_always_overlap() -> None:
    for seed in range(30):
        first, second = (torch.from_numpy(p)[None] for p in draw(sample_of(("s2",), (40, 40)), seed=seed).places[:2])
        assert partners(first, first)[0].tolist() == list(range(64))
        assert (partners(first, second) >= 0).sum() >= 16  # two squares of 8 in one of 12


def test_views_share_their_dates_and_each_image_has_its_own_jitter() -> None:
    settings = replace(PLAIN, date_jitter=4)
    views = draw(sample_of(("s2", "s1")), settings)
    moved = set()
    for name in ("s2", "s1"):
        shown_dates = [epoch[name].pixels[:, 2, 0, 0].tolist() for epoch in views.sample.epochs]
        assert all(dates == shown_dates[0] == sorted(dates) for dates in shown_dates)
        assert len(shown_dates[0]) == 3
        for epoch in views.sample.epochs:
            moved |= set((epoch[name].days - 17000 - 20 * np.array(shown_dates[0], dtype=np.int64)).tolist())
    assert moved == set(range(-4, 5))
    still = draw(sample_of(("s2",)), replace(PLAIN, date_jitter=0)).sample.epochs[0]["s2"]
    assert set(still.days.tolist()) <= set((17000 + 20 * np.arange(5)).tolist())


def test_the_same_generator_gives_the_same_views_and_another_one_others() -> None:
    sample = sample_of(("hr", "s2"))
    first, again, other = draw(sample, PICTURES), draw(sample, PICTURES), draw(sample, PICTURES, seed=1)
    for name in ("hr", "s2"):
        for one, two in zip(first.sample.epochs, again.sample.epochs, strict=True):
            assert np.array_equal(one[name].pixels, two[name].pixels)
            assert np.array_equal(one[name].days, two[name].days)
    assert all(np.array_equal(one, two) for one, two in zip(first.places, again.places, strict=True))
    assert not np.array_equal(first.sample.epochs[0]["hr"].pixels, other.sample.epochs[0]["hr"].pixels)
    kept = sample_of(("hr", "s2")).epochs[0]
    assert all(np.array_equal(sample.epochs[0][name].pixels, kept[name].pixels) for name in kept), "input was changed"


def test_pictures_change_and_series_keep_their_pixels() -> None:
    sample = sample_of(("hr", "s2"))
    plain, changed = draw(sample), draw(sample, PICTURES)
    for one, two in zip(plain.sample.epochs, changed.sample.epochs, strict=True):
        assert not np.allclose(one["hr"].pixels, two["hr"].pixels)
        assert two["hr"].pixels.dtype == np.float32
    assert np.array_equal(plain.sample.epochs[0]["s2"].pixels, changed.sample.epochs[0]["s2"].pixels)


def test_invalid_pixels_stay_invalid_and_spoil_no_others() -> None:
    sample = sample_of(("hr", "s2"))
    for name, found in sample.epochs[0].items():
        edge = 6 * PIXELS[name] + (5 if name == "hr" else 0)
        found.valid[:, :edge] = False
        found.pixels[:, :, :edge] = np.nan
    hidden = 0
    for seed in range(3):
        for found in (found for epoch in draw(sample, PICTURES, seed).sample.epochs for found in epoch.values()):
            assert np.isfinite(np.moveaxis(found.pixels, 1, -1)[found.valid]).all()
            assert np.isnan(np.moveaxis(found.pixels, 1, -1)[~found.valid]).all()
            hidden += int((~found.valid).sum())
    assert hidden > 0


def test_hr_alone_is_cut_to_whole_cells_and_a_scrap_becomes_one() -> None:
    wide = raster("hr", (3, 9), 1)
    wide = replace(wide, pixels=wide.pixels[..., :70, :280], valid=wide.valid[..., :70, :280], geobox=None)
    views = draw(Sample(id="a", epochs=({"hr": wide},)))
    assert {int(n) for places in views.places for n in places.ravel()} <= set(range(-1, 16))
    scrap = replace(wide, pixels=wide.pixels[..., :20, :20], valid=wide.valid[..., :20, :20])
    views = draw(Sample(id="a", epochs=({"hr": scrap},)))
    assert all(sorted(set(places.ravel().tolist())) == [-1, 0] for places in views.places)
    assert all(int(epoch["hr"].valid.sum()) == 400 for epoch in views.sample.epochs)


def test_views_of_samples_with_other_modalities_stack() -> None:
    samples = [sample_of(("hr", "s2")), sample_of(("s2", "s1"), (9, 30)), sample_of(("hr",), (4, 4))]
    batch = collate([draw(sample).sample for sample in samples])
    assert [set(epoch) for epoch in batch.epochs] == [{"hr", "s2", "s1"}] * 6
    assert batch.epochs[0]["hr"].pixels.shape == (3, 1, 3, 256, 256)
    assert batch.epochs[5]["s2"].pixels.shape == (3, 3, 3, 4, 4)
    assert not batch.epochs[0]["s1"].valid[0].any()


class Some(list[Sample]):
    """A split without labels."""

    classes: tuple[str, ...] = ()
    colours: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def size(self, index: int) -> tuple[int, int]:
        raise AssertionError("views ask for no size")

    def label(self, index: int) -> ClassMap:
        raise AssertionError("views ask for no label")


def test_a_draw_is_the_same_in_every_batch_and_places_come_apart_again() -> None:
    samples = Some([sample_of(("s2",), (20, 14)), sample_of(("s2",), (9, 30)), sample_of(("s2",), (4, 4))])
    chips = ViewChips(samples, ALL, PLAIN, seed=5)
    first, second = itertools.islice(training_loader(chips, batch_size=2, start=0, workers=0), 2)
    (both,) = itertools.islice(training_loader(chips, batch_size=4, start=0, workers=0), 1)
    for number in range(6):
        parts = [batch.epochs[number]["s2"].pixels for batch in (first, second)]
        assert torch.equal(torch.cat(parts), both.epochs[number]["s2"].pixels)
    assert torch.equal(torch.cat((first.target, second.target)), both.target)
    _, target = chips[0, 7]
    views = draw_views(samples[0], ALL, PLAIN, runtime.generator(5, 7))
    found = places_of(torch.from_numpy(target)[None], PLAIN)
    assert all(np.array_equal(one[0], two) for one, two in zip(found, views.places, strict=True))
    with pytest.raises(SkysenseError, match="empty"):
        ViewChips(Some(), ALL, PLAIN, seed=5)


# Pictures


def test_a_blur_keeps_what_is_even_and_the_mean_and_sees_no_invalid_pixel() -> None:
    even, valid = np.full((3, 20, 17), 0.7, dtype=np.float32), np.ones((20, 17), dtype=bool)
    assert np.allclose(blur(even, valid, 1.5), even, atol=1e-6)
    point = np.zeros((1, 21, 21), dtype=np.float32)
    point[0, 10, 10] = 1
    spread = blur(point, np.ones((21, 21), dtype=bool), 1.5)[0]
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    rows = np.arange(21) - 10.0
    assert (spread.sum(1) * rows**2).sum() == pytest.approx(1.5**2, rel=0.05)  # the variance is sigma squared
    half = even.copy()
    half[:, :10] = 1e6
    valid[:10] = False
    assert np.allclose(blur(half, valid, 2.0)[:, 10:], 0.7, atol=1e-5)


def test_each_change_of_a_picture_is_what_it_is_called() -> None:
    rng = np.random.default_rng(0)
    image, valid = rng.normal(size=(3, 8, 8)).astype(np.float32), np.ones((8, 8), dtype=bool)
    off = PLAIN
    assert np.array_equal(picture(image, valid, off, rng), image)
    grey = picture(image, valid, replace(off, grey=1.0), rng)
    assert np.allclose(grey, image.mean(0), atol=1e-6)
    dark = picture(image, valid, replace(off, solarise=1.0), rng)
    assert np.array_equal(dark, np.minimum(image, -image))
    coloured = picture(image, valid, replace(off, colour=1.0), rng)
    assert not np.allclose(coloured, image)
    assert np.corrcoef(coloured.ravel(), image.ravel())[0, 1] > 0.8


# Settings


def test_sides_that_do_not_fit_into_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="local_cells = 20"):
        config.build(ViewConfig, {"local_cells": 20}, "views")
    with pytest.raises(UsageError, match="multiple"):
        config.build(ViewConfig, {"global_cells": 10}, "views")


def test_crops_that_cut_pixels_are_refused_with_the_sides_that_do_not() -> None:
    sample = sample_of(("s2",), (15, 15))
    coarse = raster("s1", (9, 9), 1)  # 5 cells are 3 of its pixels
    sample = replace(sample, epochs=(sample.epochs[0] | {"s1": coarse},))
    with pytest.raises(UsageError, match="every 5 cells") as refused:
        draw(sample)
    assert "multiples of 20" in str(refused.value.fix)
