"""What a file's name and tags state besides its pixels: acquisition date, product level, processing baseline.

Understood are the names of SAFE and STAC items, HLS and Landsat products, and YYYYMMDD or YYYY-MM-DD anywhere in a file
name. Names are believed before tags, and nothing is guessed: what is not stated is None.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta

from skysense_core.errors import UsageError

EPOCH = date(1970, 1, 1)

_SENSING = re.compile(r"_V(\d{8})T\d{6}")  # old SAFE names open with the processing time
_JULIAN = re.compile(r"(?<!\d)(\d{7})T\d{6}(?!\d)")  # HLS: 2020273T190109
_DAY = re.compile(r"(?<!\d)(\d{8}|\d{4}-\d{2}-\d{2}|\d{4}_\d{2}_\d{2})(?!\d)")
_TIMED = re.compile(r"(?<!\d)\d{8}T\d{6}(?!\d)")
_TAGS = (
    "ACQUISITIONDATETIME",
    "ACQUISITION_DATETIME",
    "ACQUISITION_DATE",
    "DATE_ACQUIRED",
    "SENSING_TIME",
    "DATATAKE_1_DATATAKE_SENSING_START",
)
_LEVEL = re.compile(r"MSI(L1C|L2A)|(?<![A-Za-z0-9])(L1C|L2A)(?![A-Za-z0-9])")
_BASELINE = re.compile(r"_N(\d{4})_")


def parse_date(text: str) -> date | None:
    """A date written YYYYMMDD, YYYY-MM-DD, YYYY_MM_DD, YYYY:MM:DD or YYYYDDD (time may follow), or None."""
    match = re.match(r"(\d{4})[-_:./]?(\d{2})[-_:./]?(\d{2})(?!\d)", text)
    try:
        if match:
            return date(*map(int, match.groups()))
        if match := re.match(r"(\d{4})(\d{3})(?!\d)", text):
            day = date(int(match[1]), 1, 1) + timedelta(days=int(match[2]) - 1)
            return day if day.year == int(match[1]) else None
    except ValueError:
        return None
    return None


def date_in_name(path: str) -> date | None:
    """The acquisition date in a file name or, where it has none, in a product folder (with a time) around it."""
    name, *folders = _parts(path)
    products = (folder for folder in folders[:4] if _TIMED.search(folder))
    for part in (name, *products):
        for pattern in (_SENSING, _JULIAN, _DAY):
            for match in pattern.finditer(part):
                day = parse_date(match[1])
                if day is not None and 1957 < day.year < 2100:  # an 8-digit serial number is seldom such a date
                    return day
    return None


def date_in_tags(tags: Mapping[str, str]) -> date | None:
    """The acquisition date in a raster's metadata."""
    return next((day for key in _TAGS if (day := parse_date(tags.get(key, "")))), None)


def date_by_pattern(path: str, pattern: str) -> date:
    """The date that the user's `--date-pattern` (a regular expression with a group `date`) finds in a path."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--date-pattern {pattern}: not a regular expression: {error}") from None
    if "date" not in compiled.groupindex:
        raise UsageError(f"--date-pattern {pattern}: has no group named date", fix=r"For example 'img_(?P<date>\d{8})'")
    match = compiled.search(path)
    day = parse_date(match["date"] or "") if match else None
    if day is None:
        found = f"found {match['date']!r}, which is no date" if match else "does not match"
        raise UsageError(
            f"--date-pattern {pattern}: {found} in {path}",
            fix="Dates are YYYYMMDD, YYYY-MM-DD, YYYY_MM_DD or YYYYDDD; --date gives them one by one.",
        )
    return day


def assign(
    inputs: Sequence[tuple[str, tuple[date | None, ...], date | None]], given: Sequence[str]
) -> tuple[list[tuple[date | None, ...]], tuple[str, ...]]:
    """The dates of each input, from (path, dates it states, date it was written) and the user's `--date`; and notes.

    A writing date counts only where nothing else is known and all undated files agree on it: tiles of one mosaic are
    often written on different days.
    """
    if given:
        days = [parse_date(text) for text in given]
        for text, day in zip(given, days, strict=True):
            if day is None:
                raise UsageError(f"--date {text}: not a date", fix="Write it as YYYY-MM-DD.")
        if len(days) not in (1, len(inputs)):
            raise UsageError(
                f"--date is given {len(days)} times for {len(inputs)} files",
                fix="Give one date for all of them, or one for each in this order: "
                + ", ".join(i[0] for i in inputs[:6]),
            )
        return [(day,) for day in (days if len(days) == len(inputs) else days * len(inputs))], ()
    undated = [written for _, stated, written in inputs if stated == (None,)]
    if not any(undated):
        return [stated for _, stated, _ in inputs], ()
    if len(set(undated)) > 1:
        return [stated for _, stated, _ in inputs], (
            "files were written on different days (TIFFTAG_DATETIME), which is not believed to be their acquisition",
        )
    known = [stated if stated != (None,) else (written,) for _, stated, written in inputs]
    return known, (f"acquisition date {undated[0]} taken from TIFFTAG_DATETIME",)


def level_of(path: str, tags: Mapping[str, str]) -> str | None:
    """The product level L1C or L2A that the tags, the name or a product folder state."""
    for text in (tags.get("PROCESSING_LEVEL", "").replace("Level-", "L"), *list(_parts(path))[:5]):
        if match := _LEVEL.search(text):
            return match[1] or match[2]
    return None


def baseline_of(path: str, tags: Mapping[str, str]) -> float | None:
    """The Sentinel-2 processing baseline (5.09 for N0509). HLS products state their source's and are corrected: None.

    N9999 stands for a product made by its user, whose baseline is not stated.
    """
    parts = list(_parts(path))[:5]
    if parts[0].startswith("HLS"):
        return None
    texts = [
        tags.get("PROCESSING_BASELINE", "").replace(".", ""),
        *(m[1] for p in parts for m in _BASELINE.finditer(p)),
    ]
    return next((int(text) / 100 for text in texts if text.isdigit() and text != "9999"), None)


def _parts(path: str) -> Iterator[str]:
    """The parts of a path or URL, the file name first."""
    return reversed([part for part in re.split(r"[/\\]", path.split("?")[0]) if part])
