"""Class maps as polygons: the same as of the whole raster at once, measured on the ground; and maps without specks."""

import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio import features

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.polygons import check_polygons_path, sieve, write_polygons

NAMES = ("water", "wood", "road & rail", "field")
MAP = {"nodata": 255, "compress": "deflate"}


def utm(shape: tuple[int, int], gsd: float = 10.0) -> GeoBox:
    return GeoBox(shape, Affine(gsd, 0, 500_000, 0, -gsd, 4_000_000), "EPSG:32636")


def noise(shape: tuple[int, int], seed: int, shares=(0.45, 0.35, 0.1, 0, 0.1)) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([0, 1, 2, 3, 255], np.uint8), shape, p=shares)


def spiral(side: int) -> np.ndarray:
    """One area wound around another; both are open across every seam."""
    codes = np.zeros((side, side), np.uint8)
    row, col, down, right = 0, 0, 0, 1
    codes[0, 0] = 1
    while True:
        ahead, beyond = (row + down, col + right), (row + 2 * down, col + 2 * right)
        inside = 0 <= ahead[0] < side and 0 <= ahead[1] < side
        free = not (0 <= beyond[0] < side and 0 <= beyond[1] < side) or codes[beyond] == 0
        if not (inside and free and codes[ahead] == 0):
            down, right = right, -down
            ahead, beyond = (row + down, col + right), (row + 2 * down, col + 2 * right)
            if codes[ahead] or codes[beyond]:
                return codes
        row, col = ahead
        codes[ahead] = 1


def expected(codes: np.ndarray, grid: GeoBox, skip: tuple[int, ...] = ()) -> Counter:
    """GDAL's polygons of the whole raster."""
    mask = ~np.isin(codes, [255, *skip])
    found = features.shapes(codes, mask=mask, connectivity=4, transform=grid.affine)
    return Counter((int(code), shapely.normalize(shapely.geometry.shape(shape)).wkb) for shape, code in found)


def written(path: Path) -> Counter:
    frame = gpd.read_parquet(path)
    assert frame.geometry.is_valid.all()
    return Counter(zip(frame["class"], shapely.to_wkb(shapely.normalize(frame.geometry.to_numpy())), strict=True))


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 64])
def test_polygons_are_those_of_the_whole_raster_whatever_the_bands(tmp_path, write_raster, rows):
    maps = [noise((seed % 4 * 5 + 1, seed % 7 * 4 + 1), seed) for seed in range(8)]
    maps += [noise((23, 31), seed, (0.35, 0.65, 0, 0, 0)) for seed in range(3)]
    maps += [spiral(21), np.zeros((9, 5), np.uint8), np.indices((8, 8)).sum(0).astype(np.uint8) % 2]
    turned = Affine(0, 10, 500_000, 10, 0, 4_000_000)
    for index, codes in enumerate(maps):
        grid = GeoBox(codes.shape, turned if index % 2 else utm((1, 1)).affine, "EPSG:32636")
        path = write_raster(tmp_path / "map.tif", codes[None], grid, **MAP)
        count = write_polygons(path, tmp_path / "map.parquet", names=NAMES, rows=rows)
        want = expected(codes, grid)
        assert written(tmp_path / "map.parquet") == want
        assert count == want.total()


def test_large_maps_are_cut_into_chunks_of_whole_polygons(tmp_path, write_raster, monkeypatch):
    monkeypatch.setattr("skysense_core.geo.contours.CHUNK", 50)
    codes = noise((60, 80), 1)
    path = write_raster(tmp_path / "map.tif", codes[None], utm((60, 80)), **MAP)
    for rows in (7, 60):
        write_polygons(path, tmp_path / "map.parquet", names=NAMES, rows=rows)
        assert written(tmp_path / "map.parquet") == expected(codes, utm((60, 80)))


def test_classes_can_be_left_out(tmp_path, write_raster):
    codes = noise((30, 40), 2)
    path = write_raster(tmp_path / "map.tif", codes[None], utm((30, 40)), **MAP)
    write_polygons(path, tmp_path / "map.parquet", names=NAMES, skip=(0, 2), rows=8)
    assert written(tmp_path / "map.parquet") == expected(codes, utm((30, 40)), (0, 2))


@pytest.mark.parametrize("name", ["map.parquet", "map.gpkg", "map.GeoJSON", "map.fgb"])
def test_every_format_has_the_same_table(tmp_path, write_raster, name):
    codes = noise((40, 50), 3)
    path = write_raster(tmp_path / "map.tif", codes[None], utm((40, 50)), **MAP)
    values = np.random.default_rng(3).integers(0, 255, (1, 40, 50), dtype=np.uint8)
    confidence = write_raster(tmp_path / "confidence.tif", values, utm((40, 50)), nodata=255)
    out = tmp_path / name
    out.write_text("an older map")
    assert write_polygons(path, out, names=NAMES, confidence=confidence, rows=16) == len(expected(codes, utm((40, 50))))
    frame = gpd.read_parquet(out) if name.endswith(".parquet") else gpd.read_file(out)
    assert list(frame.columns) == ["class", "name", "area_m2", "confidence", "geometry"]
    assert frame.crs == ("EPSG:4326" if name == "map.GeoJSON" else "EPSG:32636")
    assert (frame["name"] == np.array(NAMES)[frame["class"]]).all()
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(["map.tif", "confidence.tif", name])
    polygons = frame.to_crs("EPSG:32636").geometry
    assert polygons.geom_type.eq("Polygon").all()
    burnt = features.rasterize(
        zip(polygons, frame["class"], strict=True), codes.shape, fill=255, transform=utm((1, 1)).affine, dtype="uint8"
    )
    np.testing.assert_array_equal(burnt, codes)
    np.testing.assert_allclose(polygons.area, frame["area_m2"], rtol=3e-3)  # GeoJSON counts centimetres


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_confidence_is_the_mean_over_the_pixels_of_the_polygon(tmp_path, write_raster, rows):
    codes = np.zeros((20, 12), np.uint8)
    codes[:, 5:7] = 1
    codes[3:17, 9] = 2
    codes[18, 10] = 3
    values = np.random.default_rng(0).integers(0, 254, (20, 12)).astype(np.uint8)
    values[:4, 5] = 255
    values[18, 10] = 255
    path = write_raster(tmp_path / "map.tif", codes[None], utm((20, 12)), **MAP)
    confidence = write_raster(tmp_path / "confidence.tif", values[None], utm((20, 12)), nodata=255)
    with rasterio.open(confidence, "r+") as dataset:
        dataset.scales = (1 / 254,)
    write_polygons(path, tmp_path / "map.parquet", names=NAMES, confidence=confidence, rows=rows)
    frame = gpd.read_parquet(tmp_path / "map.parquet").sort_values(["class", "area_m2"], ascending=[True, False])
    left = np.zeros((20, 12), bool)
    left[:, :5] = True
    parts = [left, (codes == 0) & ~left, codes == 1, codes == 2]
    means = [values[part & (values != 255)].mean() / 254 for part in parts]
    assert frame["confidence"].tolist()[:4] == pytest.approx(means, rel=1e-12)
    assert frame["confidence"].isna().tolist() == [False] * 4 + [True]
    write_polygons(path, tmp_path / "map.parquet", names=NAMES)
    assert gpd.read_parquet(tmp_path / "map.parquet")["confidence"].isna().all()


SINUSOIDAL = "+proj=sinu +R=6371007.181 +units=m +no_defs"


@pytest.mark.parametrize(
    ("affine", "crs"),
    [
        (Affine(10, 0, 300_000, 0, -10, 7_000_000), "EPSG:32636"),
        (Affine(1e-3, 0, 20, 0, -1e-3, 60), "EPSG:4326"),
        (Affine(0.5, 0, -20, 0, -0.5, 60), "EPSG:4326"),
        (Affine(30, 0, 1e6, 0, -30, 8e6), "EPSG:3857"),
        (Affine(460, 0, 8e6, 0, -460, 5.5e6), SINUSOIDAL),  # lines of the grid meet at 40 degrees there
        (Affine(100, 0, -3000, 0, -100, 3000), "EPSG:3413"),  # around the pole
        (Affine(7, 7, 300_000, 7, -7, 7_000_000), "EPSG:32636"),
    ],
)
def test_areas_are_square_metres_on_the_ground(tmp_path, write_raster, affine, crs):
    codes = noise((60, 50), 5)
    grid = GeoBox((60, 50), affine, crs)
    path = write_raster(tmp_path / "map.tif", codes[None], grid, **MAP)
    write_polygons(path, tmp_path / "map.parquet", names=NAMES, rows=13)
    frame = gpd.read_parquet(tmp_path / "map.parquet")
    # A geodesic is no straight line in the map: many vertices keep it near.
    shapes = frame.geometry.segmentize(0.2 * max(map(abs, affine[:6][:2]))).to_crs(frame.crs.geodetic_crs)
    geod = frame.crs.get_geod()
    truth = [abs(geod.geometry_area_perimeter(shape)[0]) for shape in shapes]
    np.testing.assert_allclose(frame["area_m2"], truth, rtol=2e-5)


def test_geojson_bends_long_edges_and_is_cut_at_the_antimeridian(tmp_path, write_raster):
    codes = np.zeros((1, 100, 2000), np.uint8)
    straight = GeoBox((100, 2000), Affine(100, 0, 400_000, 0, -100, 6_600_000), "EPSG:32636")
    path = write_raster(tmp_path / "map.tif", codes, straight, **MAP)
    write_polygons(path, tmp_path / "map.geojson", names=NAMES)
    frame = gpd.read_file(tmp_path / "map.geojson").to_crs("EPSG:32636")
    assert frame.geometry[0].symmetric_difference(straight.extent.geom).area < 1e-4 * straight.extent.geom.area
    across = GeoBox((100, 2000), Affine(100, 0, 200_000, 0, -100, 6_600_000), "EPSG:32601")
    path = write_raster(tmp_path / "map.tif", codes, across, **MAP)
    write_polygons(path, tmp_path / "map.geojson", names=NAMES)
    (cut,) = gpd.read_file(tmp_path / "map.geojson").geometry
    assert cut.geom_type == "MultiPolygon"
    assert sorted(round(part.bounds[0]) for part in cut.geoms) == [-180, 178]


@pytest.mark.parametrize("suffix", [".parquet", ".gpkg", ".geojson", ".fgb"])
def test_a_map_without_data_has_no_polygons(tmp_path, write_raster, suffix):
    path = write_raster(tmp_path / "map.tif", np.full((1, 5, 5), 255, np.uint8), utm((5, 5)), **MAP)
    out = tmp_path / f"map{suffix}"
    assert write_polygons(path, out, names=NAMES) == 0
    assert len(gpd.read_parquet(out) if suffix == ".parquet" else gpd.read_file(out)) == 0


def test_what_does_not_fit_together_is_explained(tmp_path, write_raster):
    path = write_raster(tmp_path / "map.tif", noise((9, 9), 0)[None], utm((9, 9)), **MAP)
    for name in ("map.shp", "map", "map.tif"):
        with pytest.raises(UsageError, match=r"not a format of polygons\nUse .parquet, .gpkg"):
            check_polygons_path(tmp_path / name)
        with pytest.raises(UsageError, match="not a format"):
            write_polygons(path, tmp_path / name, names=NAMES)
    with pytest.raises(SkysenseError, match="code 2 has no name, there are 2 classes"):
        write_polygons(path, tmp_path / "map.gpkg", names=NAMES[:2])
    write_polygons(path, tmp_path / "map.gpkg", names=NAMES[:2], skip=(2, 3))
    other = write_raster(tmp_path / "other.tif", np.zeros((1, 9, 9), np.uint8), utm((9, 9), 20))
    with pytest.raises(SkysenseError, match=r"other.tif: lies on another grid than .*map.tif"):
        write_polygons(path, tmp_path / "map.gpkg", names=NAMES, confidence=other)
    with pytest.raises(SkysenseError, match="without CRS"):
        write_polygons(
            write_raster(tmp_path / "picture.tif", np.zeros((1, 9, 9), np.uint8)), tmp_path / "a.fgb", names=NAMES
        )
    with pytest.raises(SkysenseError, match=r"missing.tif: cannot be read"):
        write_polygons(tmp_path / "missing.tif", tmp_path / "a.fgb", names=NAMES)
    with pytest.raises(SkysenseError, match="nowhere: cannot write there"):
        write_polygons(path, tmp_path / "nowhere" / "a.fgb", names=NAMES)
    assert not (tmp_path / "a.fgb").exists()


@pytest.mark.parametrize("suffix", [".parquet", ".gpkg", ".geojson", ".fgb"])
def test_a_map_that_breaks_off_leaves_the_older_file(tmp_path, write_raster, suffix):
    """The error comes through OGR, which is in the middle of reading polygons."""
    path = write_raster(tmp_path / "map.tif", noise((600, 300), 0)[None], utm((600, 300)), **MAP)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    out = tmp_path / f"map{suffix}"
    out.write_text("an older map")
    with pytest.raises(SkysenseError, match=r"map.tif: cannot be read"):
        write_polygons(path, out, names=NAMES)
    assert out.read_text() == "an older map"
    assert sorted(tmp_path.iterdir()) == sorted([path, out])


FULL_DISK = """
import resource, sys
from pathlib import Path
from skysense_core.errors import SkysenseError
from skysense_core.geo.polygons import write_polygons
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    write_polygons(Path({path!r}), Path({out!r}), names={names!r})
except SkysenseError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("suffix", [".parquet", ".gpkg", ".geojson", ".fgb"])
@pytest.mark.parametrize("moment", ["early", "last"])
def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path, write_raster, suffix, moment):
    """The last bytes, and the index of a GeoPackage, are written when the file is closed."""
    path = write_raster(tmp_path / "map.tif", noise((200, 200), 0)[None], utm((200, 200)), **MAP)
    out = tmp_path / f"map{suffix}"
    write_polygons(path, out, names=NAMES)
    limit = out.stat().st_size // 3 if moment == "early" else out.stat().st_size - 3
    out.write_text("an older map")
    script = FULL_DISK.format(limit=limit, path=str(path), out=str(out), names=NAMES)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "disk" in done.stdout
    assert out.read_text() == "an older map"
    assert sorted(tmp_path.iterdir()) == sorted([path, out])


def test_memory_does_not_grow_with_the_height_of_the_map(tmp_path, write_raster):
    peaks = []
    for height in (200, 1000):
        codes = noise((height, 120), 0, (0.25, 0.25, 0.2, 0.2, 0.1))
        path = write_raster(tmp_path / "map.tif", codes[None], utm((height, 120)), **MAP)
        tracemalloc.start()
        write_polygons(path, tmp_path / "map.parquet", names=NAMES, rows=50)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_specks_take_the_class_of_their_largest_neighbour(tmp_path, write_raster):
    codes = np.zeros((600, 20), np.uint8)
    codes[:, 12:] = 1
    codes[100:103, 10:13] = 2  # 9 pixels; the wider class 0 is larger
    codes[510:513, 14:17] = 0
    codes[300:310, 3] = 3  # 10 pixels stay
    path = write_raster(tmp_path / "map.tif", codes[None], utm((600, 20)), tiled=True, **MAP)
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {0: (1, 2, 3, 255)})
        dataset.update_tags(MODEL="nano")
    sieve(path, 10)
    wanted = np.zeros((600, 20), np.uint8)
    wanted[:, 12:] = 1
    wanted[100:103, 12] = 0
    wanted[300:310, 3] = 3
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(1), wanted)
        assert dataset.colormap(1)[0] == (1, 2, 3, 255)
        assert dataset.tags()["MODEL"] == "nano"
        assert dataset.nodata == 255


def test_nodata_is_neither_filled_nor_spreads(tmp_path, write_raster):
    codes = np.full((30, 30), 255, np.uint8)
    codes[5:20, 5:20] = 0
    codes[10, 10] = 255  # a hole of one pixel
    codes[8, 5:7] = 1  # between nodata and class 0
    codes[25, 25:28] = 2  # an island has no neighbour
    path = write_raster(tmp_path / "map.tif", codes[None], utm((30, 30)), **MAP)
    sieve(path, 5)
    with rasterio.open(path) as dataset:
        sieved = dataset.read(1)
    np.testing.assert_array_equal(sieved == 255, codes == 255)
    assert (sieved[5:20, 5:20][codes[5:20, 5:20] != 255] == 0).all()
    assert (sieved[25, 25:28] == 2).all()


@pytest.mark.parametrize("minimum", [0, 1, 3, 10**9])
def test_no_minimum_leaves_all_and_an_impossible_one_as_well(tmp_path, write_raster, minimum):
    codes = noise((40, 40), 0)
    path = write_raster(tmp_path / "map.tif", codes[None], utm((40, 40)), **MAP)
    sieve(path, minimum)
    with rasterio.open(path) as dataset:
        sieved = dataset.read(1)
    np.testing.assert_array_equal(sieved == 255, codes == 255)
    assert (sieved == codes).all() == (minimum != 3)


def test_a_map_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "map.tif").write_text("hello")
    with pytest.raises(SkysenseError, match=r"map.tif: cannot be read or written"):
        sieve(tmp_path / "map.tif", 5)
