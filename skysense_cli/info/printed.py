"""How `skysense info` prints what it found, data sets excepted."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from skysense_cli import console

if TYPE_CHECKING:
    from skysense_core.info import MachineInfo, ModelInfo, RasterInfo, RunInfo, SourcesInfo, StoreInfo
    from skysense_core.info.scene import Fit
    from skysense_core.info.stored import Content
    from skysense_core.modalities import Modality

BAR = 40
"""Letters of the longest bar."""
MONTHS = 36
"""A chart of more months than these is one of years."""


def print_sources(found: "SourcesInfo") -> None:
    """The table of data sets."""
    columns = ("source", "tasks", "modalities", "classes", "split", "licence", "from")
    rows = [
        (name, ", ".join(one.tasks), ", ".join(one.modalities), one.classes, one.split, one.licence, one.where)
        for name, one in found.table.items()
    ]
    console.print_table("Data sets by layout (--source)", columns, rows)


def print_store(found: "StoreInfo") -> None:
    """What a store holds."""
    facts = {
        "store": str(found.path),
        "samples": f"{found.samples:,}",
        "area": f"{found.area_km2:,.4g} km2",
        "CRS": _listed(found.crs),
        "disk": f"{_size(found.bytes)}, {found.shards} shard{'s' * (found.shards != 1)}",
        "format": f"version {found.version}",
    }
    if found.failures:
        facts["failed"] = f"inputs that could not be read, see failures.jsonl: {found.failures}"
    console.print_facts(facts)
    rows = [
        (name or "in no part", f"{count:,}", share_of(count, found.samples)) for name, count in found.splits.items()
    ]
    console.print_table("Parts", ("part", "samples", "share"), rows)
    columns = ("modality", "bands", "level", "unit", "pixel", "samples", "images", "valid")
    console.print_table("Modalities", columns, [_content(name, one) for name, one in found.modalities.items()])
    for name, one in found.modalities.items():
        if one.months:
            print_bars(f"Images of {name}", _periods(one.months))
        if one.undated:
            console.print_facts({name: f"images without a date: {one.undated}"})
        for note in one.notes:
            console.print_facts({name: note})
    if found.labels:
        print_bars("Labelled pixels", found.labels)


def _content(name: str, one: "Content") -> Sequence[str]:
    samples, images = f"{one.samples:,}", f"{one.images:,}"
    return name, *inputs(one.modality), samples, images, console.percent(one.valid)


def print_model(found: "ModelInfo") -> None:
    """What a model is."""
    console.print_facts({"model": found.name, "LICENCE": found.licence, "path": str(found.path)})
    console.print_facts(
        {
            "task": found.task or "none yet: an encoder to start from",
            "classes": ", ".join(found.classes) or "-",
            "preset": "custom" if found.spec.get("custom") else str(found.spec.get("preset", "-")),
            "parameters": f"{_millions(found)}, {_size(found.bytes)} on disk",
            "speed here": _speed(found),
            "written by": f"skysense {found.skysense}",
            "digest": found.digest,
        }
    )
    rows = [(name, *inputs(modality)) for name, modality in found.modalities.items()]
    console.print_table("Input", ("modality", "bands", "level", "unit", "pixel"), rows)
    console.print_facts({key.replace("_", " "): str(value) for key, value in found.training.items()})
    scores = {
        console.TITLES.get(key, key): console.score(v) for key, v in found.metrics.items() if isinstance(v, float)
    }
    if scores:
        console.print_table("Scores on the validation part", ("score", "value"), list(scores.items()))
    if "classes" in found.metrics:
        console.print_classes("Classes", found.metrics)


def print_run(found: "RunInfo") -> None:
    """How far a run is."""
    console.print_facts(
        {
            "run": str(found.path),
            "of": f"skysense {found.verb}",
            "data": found.data,
            "steps": f"{found.step:,} of {found.steps:,}" + " (finished)" * (found.step >= found.steps > 0),
        }
    )
    for kind, entry in found.metrics.items():
        numbers = [(key, f"{value:.4g}") for key, value in entry.items() if isinstance(value, float)]
        console.print_table(f"Last log line of {kind}, step {entry.get('step', '?')}", ("name", "value"), numbers)
    rows = [
        (one.path.name, one.task or "-", one.licence, _millions(one), _headline(one.metrics)) for one in found.models
    ]
    console.print_table("Models", ("model", "task", "licence", "parameters", "scores"), rows)


def print_raster(found: "RasterInfo") -> None:
    """What a raster is, and who reads it."""
    corner = ", ".join(f"{edge:.8g}" for edge in found.bounds)
    facts = {
        "raster": found.path + (f" ({found.files} files)" if found.files > 1 else ""),
        "grid": f"{found.height} x {found.width} pixels (rows x columns)",
        "CRS": found.crs or "none: a picture without a place",
        "bounds": corner,
        "pixel": "-" if found.gsd is None else f"{found.gsd:.4g} m",
        "centre": "-" if found.lonlat is None else f"lon {found.lonlat[0]:.5f}, lat {found.lonlat[1]:.5f}",
        "bands": ", ".join(found.bands),
        "dates": _dates(found.dates, found.undated),
        "level": found.level or "not stated",
        "unit": found.unit or "not stated",
        "type": found.dtype,
        "stored": _stored(found),
        "valid": f"{console.percent(found.valid)} of the sampled pixels",
        "sensor": f"guessed: {found.sensor}",
        "values": f"guessed: {found.scale}",
    }
    console.print_facts(facts)
    rows = [(name, *(f"{edge:.4g}" for edge in (one.low, one.middle, one.high))) for name, one in found.values.items()]
    console.print_table("Values as stored", ("band", "2 %", "50 %", "98 %"), rows)
    console.print_table(
        "Who reads it", ("modality", "model", "reads it", "median off"), [_fit(one) for one in found.fits]
    )
    console.print_facts({f"note {number}": note for number, note in enumerate(found.notes, start=1)})


def _fit(one: "Fit") -> Sequence[str]:
    """Whether it can be read, and how far each band's median lies from the known mean, in standard deviations."""
    off = ", ".join(f"{name} {band.off:+.1f}" for name, band in one.bands.items() if band.off is not None)
    said = f"yes, but far off: {', '.join(one.far)}" if one.far else "yes"
    return one.modality, one.model or "-", one.refused or said, off or "-"


def _stored(found: "RasterInfo") -> str:
    one = found.storage
    if one is None:
        return "as a product, a cube or an item"
    how = "COG" if one.cog else f"{one.driver}, not a COG"
    overviews = f"overviews {', '.join(map(str, one.overviews))}" if one.overviews else "no overviews"
    nodata = "no nodata" if one.nodata is None else f"nodata {one.nodata:g}"
    blocks = "in tiles" if one.tiled else "not in tiles"
    return ", ".join((how, one.compression or "not compressed", blocks, overviews, nodata))


def print_machine(found: "MachineInfo") -> None:
    """What computes here."""
    console.print_facts(
        {
            "skysense": found.skysense,
            "Python": found.python,
            "torch": found.torch,
            "GDAL": found.gdal,
            "system": found.system,
            "cores": f"{found.cores}, {found.threads} threads compute",
        }
    )
    rows = [
        (key, one.name, _size(one.memory), _size(one.free), "yes" if one.bf16 else "no")
        for key, one in found.devices.items()
    ]
    console.print_table("Devices", ("--device", "name", "memory", "free", "bf16"), rows)
    states = {name: f"lacks {', '.join(lacking)}" if lacking else "installed" for name, lacking in found.extras.items()}
    console.print_table("Extras", ("extra", "state"), states.items())


def _dates(days: Sequence[str], undated: int) -> str:
    shown = ", ".join(days) if len(days) <= 8 else f"{len(days)} from {days[0]} to {days[-1]}"
    return ", ".join([*([shown] if days else []), *([f"{undated} not dated"] if undated else [])])


def inputs(modality: "Modality") -> Sequence[str]:
    """Bands, level, unit and pixel size."""
    return ", ".join(modality.band_names), modality.level, modality.unit, f"{modality.gsd:g} m"


def print_bars(title: str, counts: Mapping[str, int]) -> None:
    """A bar chart in letters."""
    most, total = max(counts.values(), default=0) or 1, sum(counts.values())
    rows = [
        (name, f"{count:,}", share_of(count, total), "█" * round(BAR * count / most) or "▏" * (count > 0))
        for name, count in counts.items()
    ]
    console.print_bars(title, rows)


def _periods(months: Mapping[str, int]) -> dict[str, int]:
    if len(months) <= MONTHS:
        return dict(months)
    years: dict[str, int] = {}
    for month, count in months.items():
        years[month[:4]] = years.get(month[:4], 0) + count
    return years


def _headline(metrics: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{console.TITLES.get(k, k)} {v:.3f}" for k, v in list(metrics.items())[:4] if isinstance(v, float)
    )


def _listed(counts: Mapping[str, int]) -> str:
    shown = [f"{name} ({count:,})" for name, count in list(counts.items())[:6]]
    return ", ".join(shown) + ", ..." * (len(counts) > 6)


def share_of(count: int, total: int) -> str:
    return console.percent(count / total) if total else "-"


def _millions(model: "ModelInfo") -> str:
    return "not counted" if model.parameters is None else f"{model.parameters / 1e6:,.2f} M"


def _speed(model: "ModelInfo") -> str:
    one = model.speed
    if one is None:
        return "not measured: --speed"
    series = f" of {one.dates} dates" if one.dates > 1 else ""
    threads = f", {one.threads} threads" if one.device == "cpu" else ""
    return (
        f"{one.windows_per_s:.3g} windows/s ({one.window} x {one.window} pixels{series}), {one.megapixels_per_s:.3g} "
        f"Mpx/s of a map, on {one.device}{threads}, {one.precision}"
    )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"
