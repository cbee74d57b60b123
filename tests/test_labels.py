"""Labels follow their images: what was drawn at a place is still there after cropping and turning."""

import itertools

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from skysense_core.data import labels
from skysense_core.data.batch import collate
from skysense_core.data.transforms import crop, turn
from skysense_core.errors import SkysenseError
from skysense_core.types import IGNORE, ClassMap, ClassMaps, Label, Objects, Raster, Sample, Tags, ValueMap

GRID = GeoBox((8, 12), Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32632")
PIXELS = np.arange(96, dtype=np.float32).reshape(8, 12)
TURNS = list(itertools.product((False, True), repeat=3))


def sample(label: Label) -> Sample:
    """An image whose pixels are their own number, twice as coarse beside it, in two epochs."""
    one = {"days": np.zeros(1, dtype=int), "dated": np.zeros(1, dtype=bool)}
    fine = Raster(pixels=PIXELS[None, None], valid=np.ones((1, 8, 12), dtype=bool), geobox=GRID, **one)
    coarse = Raster(pixels=np.zeros((1, 1, 4, 6)), valid=np.ones((1, 4, 6), dtype=bool), **one)
    return Sample(id="a", epochs=({"hr": fine, "s2": coarse}, {"hr": fine}), label=label)


def boxes(*squares: tuple[float, float, float, float]) -> Objects:
    """Boxes of left, top, right, bottom."""
    corners = [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, y0, x1, y1 in squares]
    n = len(squares)
    table = np.array(corners, float).reshape(n, 4, 2)
    return Objects(corners=table, codes=np.arange(n), difficult=np.zeros(n, dtype=bool))


def changed(label: Label, transpose: bool, rows: bool, cols: bool) -> Sample:
    whole = turn(sample(label), transpose=transpose, flip_rows=rows, flip_cols=cols)
    return crop(whole, "hr", row=2, col=2, height=10, width=4)  # beyond the lower edge in most cases


@pytest.mark.parametrize("turned", TURNS)
def test_maps_of_every_kind_lie_where_their_pixels_lie(turned: tuple[bool, bool, bool]) -> None:
    codes = PIXELS.astype(np.uint8)
    for label in (
        ClassMap(codes=codes, geobox=GRID),
        ValueMap(values=PIXELS, geobox=GRID),
        ClassMaps(codes=np.stack([codes, codes]), geobox=GRID),
    ):
        found = changed(label, *turned)
        image = found.epochs[0]["hr"]
        seen = image.valid[0]
        values = found.label.values if isinstance(label, ValueMap) else np.atleast_3d(found.label.codes.T).T[-1]
        assert (values[seen] == image.pixels[0, 0][seen]).all()
        assert np.isnan(values[~seen]).all() if isinstance(label, ValueMap) else (values[~seen] == IGNORE).all()
        assert found.label.geobox == image.geobox


@pytest.mark.parametrize("turned", TURNS)
def test_objects_lie_on_their_pixels_and_run_clockwise(turned: tuple[bool, bool, bool]) -> None:
    objects = boxes((1, 2, 4, 3), (6, 1, 8, 7), (9, 5, 11, 6))
    whole = turn(sample(objects), transpose=turned[0], flip_rows=turned[1], flip_cols=turned[2])
    found, image = whole.label, whole.epochs[0]["hr"].pixels[0, 0]
    for index, (x0, y0, x1, y1) in enumerate(((1, 2, 4, 3), (6, 1, 8, 7), (9, 5, 11, 6))):
        (left, top), (right, bottom) = found.corners[index].min(axis=0), found.corners[index].max(axis=0)
        inside = image[int(top) : int(bottom), int(left) : int(right)]
        assert set(inside.ravel()) == set(PIXELS[y0:y1, x0:x1].ravel())
        x, y = found.corners[index].T
        assert (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0  # clockwise where y runs down


def test_a_crop_keeps_the_objects_whose_centre_it_shows() -> None:
    found = crop(sample(boxes((0, 0, 3, 2), (2, 2, 6, 6), (9, 5, 11, 6))), "hr", row=2, col=2, height=4, width=4)
    assert found.label.codes.tolist() == [1]
    assert found.label.corners[0].tolist() == [[0, 0], [4, 0], [4, 4], [0, 4]]


def test_tags_hold_for_every_part() -> None:
    assert changed(Tags(codes=(2, 5)), True, False, True).label == Tags(codes=(2, 5))


def test_what_no_image_shows_is_not_known() -> None:
    unseen = np.zeros((2, 8, 12), dtype=bool)
    unseen[1, 3, 4] = True
    codes = np.ones((8, 12), dtype=np.uint8)
    assert labels.known(labels.hidden(ClassMap(codes=codes), unseen)) == 95
    monthly = labels.hidden(ClassMaps(codes=np.stack([codes, codes])), unseen)
    assert (monthly.codes == IGNORE).sum(axis=(1, 2)).tolist() == [0, 1]
    assert np.isnan(labels.hidden(ValueMap(values=PIXELS), unseen).values).sum() == 1
    assert labels.hidden(boxes((4, 3, 5, 4), (5, 3, 6, 4)), unseen).codes.tolist() == [1]
    assert labels.hidden(Tags(codes=(1,)), unseen) == Tags(codes=(1,))


def test_classes_are_counted_in_pixels_samples_and_objects() -> None:
    assert labels.counts(ClassMap(codes=np.array([[0, 2, 2, IGNORE]], dtype=np.uint8)), 3).tolist() == [1, 0, 2]
    assert labels.counts(Tags(codes=(0, 2)), 3).tolist() == [1, 0, 1]
    assert labels.counts(boxes((0, 0, 1, 1), (0, 0, 2, 2)), 3).tolist() == [1, 1, 0]
    with pytest.raises(SkysenseError, match="values, not classes"):
        labels.counts(ValueMap(values=PIXELS), 3)
    with pytest.raises(SkysenseError, match="found tags of images"):
        labels.class_map(Tags(codes=(1,)))


def test_targets_of_unequal_length_are_padded_with_nan() -> None:
    rows = [np.ones((2, 10), dtype=np.float32), np.zeros((0, 10), dtype=np.float32)]
    target = collate([sample(boxes()), sample(boxes())], rows).target
    assert target.shape == (2, 2, 10)
    assert target[1].isnan().all()
    assert not target[0].isnan().any()
