"""What a Sentinel-2 product (SAFE) holds, in a folder or in a zip archive, and what its metadata say."""

import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath
from typing import NoReturn
from xml.etree import ElementTree

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.geo import dates
from skysense_core.geo.archive import open_web
from skysense_core.geo.files import TERRAIN_CORRECT
from skysense_core.geo.paths import METADATA, is_web
from skysense_core.geo.series import SHIFTED_BASELINE

BANDS = {
    "B01": "coastal",
    "B02": "blue",
    "B03": "green",
    "B04": "red",
    "B05": "rededge1",
    "B06": "rededge2",
    "B07": "rededge3",
    "B08": "nir",
    "B8A": "nir08",
    "B09": "nir09",
    "B10": "cirrus",
    "B11": "swir16",
    "B12": "swir22",
}
"""{ESA's name: STAC's}, in the order in which the metadata number the bands."""
OWN_BASELINE = 99.99
"""Stated by products that a user made with Sen2Cor: it says nothing of the offset."""
MOST_METADATA = 16 * 2**20
"""Bytes; real metadata have less than one percent of this."""
QUANTITIES = ("QUANTIFICATION_VALUE",), ("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE")
"""Where L1C and L2A state by what their reflectance is multiplied."""
_IMAGES = ("GRANULE/*/IMG_DATA/*.jp2", "GRANULE/*/IMG_DATA/R?0m/*.jp2")
AGAIN = "Download or copy the product again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The files of a product, in a folder or in an archive."""

    path: str
    root: str
    """What stands before the names, for GDAL."""
    inner: str
    """What stands before them in an archive."""
    metadata: str
    images: tuple[str, ...]

    def read_metadata(self) -> bytes:
        """The content of the metadata file. Raises SkysenseError where it is damaged or absurdly large."""
        try:
            if Path(self.path).is_dir():
                with open(Path(self.path) / self.metadata, "rb") as file:
                    content = file.read(MOST_METADATA + 1)
            else:
                with _archive(self.path) as archive, archive.open(self.inner + self.metadata) as packed:
                    content = packed.read(MOST_METADATA + 1)
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise SkysenseError(f"{self.path}: {self.metadata} cannot be read: {error}", fix=AGAIN) from None
        if len(content) > MOST_METADATA:
            raise SkysenseError(f"{self.path}: {self.metadata} is too large to be a product's metadata", fix=AGAIN)
        return content


def open_content(path: str) -> Content:
    """Look into a product folder or a zip archive. Raises SkysenseError where it holds no product or is damaged."""
    place = Path(path)
    if place.is_dir():
        inner, root = "", path.rstrip("/") + "/"
        top = sorted(item.name for item in place.iterdir())
        images = [item.relative_to(place).as_posix() for pattern in _IMAGES for item in sorted(place.glob(pattern))]
    else:
        inner, names = _packed(path)
        root = f"/vsizip/{{{'/vsicurl/' * is_web(path)}{path}}}/{inner}"
        names = [name.removeprefix(inner) for name in names if name.startswith(inner)]
        top = [name for name in names if "/" not in name]
        images = [name for name in names if any(PurePosixPath(name).match(pattern) for pattern in _IMAGES)]
    metadata = [name for name in top if METADATA.fullmatch(name)]
    if not metadata:
        raise _no_product(path, place.name)
    return Content(path=path, root=root, inner=inner, metadata=metadata[0], images=tuple(images))


def _packed(path: str) -> tuple[str, list[str]]:
    """(where the product lies in a zip archive, all names in it)."""
    try:
        with _archive(path) as archive:
            names = sorted(archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        raise SkysenseError(f"{path}: not a whole zip archive: {error}", fix="Download or copy it again.") from None
    for name in names:
        if name.startswith("/") or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:", name):
            raise SkysenseError(
                f"{path}: holds {name!r}, a path that leads out of the archive",
                fix="No product of ESA does: use an archive from a source that you trust.",
            )
    found = [name for name in names if name.count("/") <= 1 and METADATA.fullmatch(PurePosixPath(name).name)]
    if not found:
        raise _no_product(path, next(iter(names), ""))
    if len(found) > 1:
        listing = ", ".join(str(PurePosixPath(name).parent) for name in found)
        raise UsageError(f"{path}: holds {len(found)} products: {listing}", fix="Unpack it, and give them one by one.")
    return found[0].removesuffix(PurePosixPath(found[0]).name), names


def _archive(path: str) -> zipfile.ZipFile:
    """Of one on the web only the directory and what is asked for are fetched."""
    return zipfile.ZipFile(open_web(path) if is_web(path) else path)


def _no_product(path: str, name: str) -> SkysenseError:
    if Path(path).name.upper().startswith("S1") or name.upper().startswith("S1"):
        return SkysenseError(
            f"{path}: a Sentinel-1 product that is not terrain-corrected",
            fix=TERRAIN_CORRECT,
        )
    if Path(path).is_dir():
        return SkysenseError(f"{path}: no metadata (MTD_MSIL1C.xml or MTD_MSIL2A.xml) in this folder", fix=AGAIN)
    return SkysenseError(
        f"{path}: an archive without a Sentinel-2 product (no MTD_MSIL1C.xml or MTD_MSIL2A.xml)",
        fix=f"Unpack it, or give a raster in it: '/vsizip/{path}/{name or 'NAME.tif'}'",
    )


class _Plain(ElementTree.TreeBuilder):
    """Elements and text only: a document type, which could define entities, is refused."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise ValueError("it holds a document type, which a product's metadata never do")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What a product says of itself."""

    level: str
    day: date
    baseline: float
    offsets: Mapping[str, float] | None
    """{band: what its values need to be reflectance x 10000}; None where a baseline that has offsets does not say."""
    nodata: float
    saturated: float | None


def read_metadata(content: Content) -> Metadata:
    """Parse a product's metadata. Raises SkysenseError where they are damaged or incomplete, or state another scale of
    values than reflectance x 10000."""
    texts: defaultdict[str, list[tuple[str, Mapping[str, str]]]] = defaultdict(list)
    try:
        parser = ElementTree.XMLParser(target=_Plain())
        for element in ElementTree.fromstring(content.read_metadata(), parser=parser).iter():
            texts[element.tag.rpartition("}")[2]].append(((element.text or "").strip(), element.attrib))
        level = _first(texts, "PROCESSING_LEVEL").replace("Level-", "L")[:3]
        day = dates.parse_date(_first(texts, "DATATAKE_SENSING_START", "PRODUCT_START_TIME"))
        baseline = float(_first(texts, "PROCESSING_BASELINE"))
        quantity = float(_first(texts, *QUANTITIES[level[:3] == "L2A"]))
        special = {
            name: float(value)
            for (name, _), (value, _) in zip(texts["SPECIAL_VALUE_TEXT"], texts["SPECIAL_VALUE_INDEX"], strict=True)
        }
        added = texts["RADIO_ADD_OFFSET" if level == "L1C" else "BOA_ADD_OFFSET"]
        stated = {list(BANDS)[int(where["band_id"])]: float(value) for value, where in added}
    except (ElementTree.ParseError, ValueError, KeyError, IndexError) as error:
        raise SkysenseError(f"{content.path}: {content.metadata} cannot be read: {error}", fix=AGAIN) from None
    if level not in ("L1C", "L2A") or day is None:
        raise SkysenseError(
            f"{content.path}: {content.metadata} states no known level (L1C, L2A) or no date", fix=AGAIN
        )
    if quantity != 10000:
        raise SkysenseError(
            f"{content.path}: its values are reflectance x {quantity:g}, not x 10000",
            fix="Convert its bands with gdal_translate -scale, and give the files.",
        )
    unsaid = not stated and SHIFTED_BASELINE <= baseline < OWN_BASELINE
    return Metadata(
        level=level,
        day=day,
        baseline=baseline,
        offsets=None if unsaid else {band: stated.get(band, 0.0) for band in BANDS},
        nodata=special.get("NODATA", 0.0),
        saturated=special.get("SATURATED"),
    )


def _first(texts: Mapping[str, list[tuple[str, Mapping[str, str]]]], *names: str) -> str:
    for name in names:
        if texts.get(name):
            return texts[name][0][0]
    raise KeyError(f"no {names[0]}")
