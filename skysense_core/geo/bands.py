"""Bands are found by name, never by their number: descriptions first, then the file's name, then colours.

ESA (`B04`), STAC (`red`, `nir08`, `vv`), HLS (`Red_Edge1`) and openEO (`S2-L2A-B04`) names are understood; a modality's
file says which of them mean the same band.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from skysense_core.errors import UsageError

_GENERIC = re.compile(r"(band|layer|channel)?[\s_-]*\d*", re.IGNORECASE)
_COMMON = frozenset(  # STAC's common names
    {"pan", "coastal", "blue", "green", "yellow", "red", "nir", "nir08", "nir09", "cirrus", "swir16", "swir22"}
    | {"rededge", "rededge1", "rededge2", "rededge3", "rededge071", "rededge075", "rededge078"}
)
_COLOURS = frozenset(name.rstrip("0123456789") for name in _COMMON) | {"lwir"}
_DECIBEL = re.compile(r"[-_.\s][(\[]?db[)\]]?$", re.IGNORECASE)  # SNAP writes Sigma0_VV_db
_SENSOR_CODE = re.compile(r"[A-Za-z]{1,3}\d{1,2}[A-Za-z]?|[VH][VH]", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """How one band of a file may be called."""

    names: tuple[str, ...] = ()
    weak: bool = False
    """Known by its display colour only: a band that is named so elsewhere wins (B04 over the red of a quick-look)."""

    loose: bool = False
    """The names are words of a file name, of which at most one means a band."""
    product: bool = False
    """The names are those of a product as a whole, which `--bands` does not change."""
    common: str | None = None
    """Its common name where that is stated as such: it says which part of the spectrum a sensor's code (B5) means."""

    @property
    def label(self) -> str | None:
        """The one name by which to call it; None where it has none."""
        known = [name for name in self.names if not self.loose or is_band_word(name)]
        return known[0] if known else None


def canonical(name: str) -> str:
    """The form in which names are compared: `Red_Edge 1` and `rededge1` are one."""
    return re.sub(r"[\s_-]", "", name).lower()


def is_band_word(word: str) -> bool:
    """Whether a word by itself names a band: a sensor's code (B04, VV) or a common name (red, nir08)."""
    return bool(_SENSOR_CODE.fullmatch(word)) or canonical(word) in _COMMON


def by_description(text: str | None) -> Found | None:
    """The names in a band description: all of it, what precedes a comma, and a sensor's band code at its end."""
    if not text or _GENERIC.fullmatch(text):
        return None
    names = [text.strip(), text.split(",")[0].strip()]
    code = re.split(r"[-_.:/\s]", _DECIBEL.sub("", names[1]))[-1]
    names += [code] if _SENSOR_CODE.fullmatch(code) else []
    return Found(names=tuple(dict.fromkeys(names)))


def by_file_name(path: str) -> Found:
    """The words of a single-band file's name, the last one first: `T33UUU_20170216T102101_B04_10m.jp2`."""
    stem = PurePosixPath(path.split("?")[0].replace("\\", "/")).stem
    words = [word for word in reversed(re.split(r"[_.\-\s]", stem)) if word and not word.isdigit()]
    return Found(names=tuple(words), loose=True)


def by_user(names: Sequence[str], count: int, path: str) -> tuple[Found, ...]:
    """The user's `--bands` for a file of `count` bands; `-` leaves one out. Raises UsageError on another number."""
    if len(names) != count:
        raise UsageError(
            f"{path} has {count} band{'s' * (count != 1)}, and --bands names {len(names)} ({', '.join(names)})",
            fix="Name every band of the file, in the file's order; - leaves one out.",
        )
    return tuple(Found(names=() if name == "-" else (name,)) for name in names)


def match(wanted: Sequence[tuple[str, ...]], found: Sequence[Found], path: str) -> dict[int, int]:
    """{position of a wanted band: position of the file's band that is it}, for the wanted bands that the file has.

    A wanted band is its accepted names, the preferred first. Raises UsageError where two bands have the same name.
    """
    matches: dict[int, int] = {}
    for position, names in enumerate(wanted):
        near = [item if _agrees(names, item) else Found() for item in found]
        for name in map(canonical, names):
            for strong in (True, False):
                hits = _holders(name, [item if item.weak is not strong else Found() for item in near])
                if len(hits) > 1:
                    raise _ambiguous(name, hits, found, path)
                if hits and position not in matches:
                    matches[position] = hits[0]
    return matches


def _agrees(names: Sequence[str], found: Found) -> bool:
    """Whether a wanted band may have this common name: Landsat's B5 is near infrared, Sentinel-2's red edge."""
    colours = {canonical(name).rstrip("0123456789") for name in names} & _COLOURS
    if "nir" in colours:
        colours |= {"rededge"}  # what B8A of Sentinel-2 is called in half of the catalogues
    return not colours or found.common is None or canonical(found.common).rstrip("0123456789") in colours


def _ambiguous(name: str, hits: Sequence[int], found: Sequence[Found], path: str) -> UsageError:
    if all(found[hit].product for hit in hits):
        listing = " and ".join(found[hit].names[-1] for hit in hits)
        return UsageError(f"{path}: {listing} are both called {name}", fix="Give the file of the one that is meant.")
    return UsageError(
        f"{path}: bands {' and '.join(str(hit + 1) for hit in hits)} are both called {name}",
        fix="Say which is which, - leaving one out: --bands " + ",".join(item.label or "-" for item in found),
    )


def _holders(name: str, found: Sequence[Found]) -> list[int]:
    """The bands that have this name; a whole description wins over a part of one."""
    ranks = {
        index: [canonical(item) for item in band.names].index(name)
        for index, band in enumerate(found)
        if name in [canonical(item) for item in band.names]
    }
    return [index for index, rank in ranks.items() if rank == min(ranks.values())]


def missing(
    wanted: Sequence[tuple[str, ...]], absent: Sequence[int], found: Mapping[str, Sequence[Found]]
) -> UsageError:
    """The error for wanted bands that no file has: what was found where, and the option that fixes it."""
    names = ", ".join(wanted[position][0] for position in absent)
    shown = [f"{path}: {_listing(bands)}" for path, bands in list(found.items())[:4]]
    more = [f"and {len(found) - 4} more files"] if len(found) > 4 else []
    most = max(found.values(), key=len)
    fix = "Give the files of all bands together; --bands names the bands of a file in its order."
    if all(band.product for bands in found.values() for band in bands):
        fix = "Products and items are read as they are: download it again if files are missing; L2A has no B10."
    elif len(most) >= len(absent):
        example = ",".join([names[0] for names in wanted] + ["-"] * (len(most) - len(wanted)))
        fix = f"Name the bands of the file in its order (- leaves one out), for example --bands {example}"
    return UsageError(f"no band is called {names}; found " + "; ".join([*shown, *more]), fix=fix)


def _listing(bands: Sequence[Found]) -> str:
    count = f"{len(bands)} band{'s' * (len(bands) != 1)}"
    if not any(band.label for band in bands):
        return f"{count} without names"
    return f"{count} ({', '.join(band.label or 'unnamed' for band in bands)})"
