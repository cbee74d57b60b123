"""How `skysense info` prints a data set."""

from typing import TYPE_CHECKING

from skysense_cli import console
from skysense_cli.info.printed import inputs, print_bars, share_of

if TYPE_CHECKING:
    from skysense_core.info import DatasetInfo
    from skysense_core.info.dataset import Finding

SIZES = 4
"""Most sizes that are told."""
UNREADABLE = 10
"""Most unreadable samples that are told."""


def print_dataset(found: "DatasetInfo") -> None:
    """What a data set holds, then what would spoil it."""
    console.print_facts(
        {
            "data set": str(found.path),
            "layout": found.source,
            "recognised by": found.evidence,
            "tasks": ", ".join(found.tasks),
            "classes": f"{len(found.classes)}: {', '.join(found.classes)}" if found.classes else "none",
        }
    )
    rows = [(name, *inputs(modality)) for name, modality in found.modalities.items()]
    console.print_table("Modalities", ("modality", "bands", "level", "unit", "pixel"), rows)
    total = sum(one.samples for one in found.parts.values())
    parts = [
        (name, f"{one.samples:,}", share_of(one.samples, total), f"{one.looked_at:,}")
        for name, one in found.parts.items()
    ]
    console.print_table("Parts", ("part", "samples", "share", "read"), parts)
    _print_labels(found)
    console.print_facts(_notes(found))
    console.print_facts(_faults(found))


def _print_labels(found: "DatasetInfo") -> None:
    for name, one in found.parts.items():
        seen = "all samples" if one.labelled == one.samples else f"{one.labelled:,} of {one.samples:,} samples"
        if one.values is not None:
            low, mean, high = one.values
            console.print_facts({name: f"values {low:.4g} to {high:.4g}, mean {mean:.4g} ({seen})"})
        elif any(one.labels.values()):
            unknown = {"(no class)": one.unknown} if one.unknown else {}
            print_bars(f"Labelled {found.counted} of {name}, {seen}", {**one.labels, **unknown})


def _notes(found: "DatasetInfo") -> dict[str, str]:
    notes = dict.fromkeys(note for one in found.parts.values() for note in one.notes)
    return {f"note {number}": note for number, note in enumerate(notes, start=1)}


def _faults(found: "DatasetInfo") -> dict[str, str]:
    """Every kind of fault by its name, those that were not found too: silence would say less."""
    read = "" if found.whole else " among those read (--all reads every sample)"
    sizes = [f"{size} ({count:,})" for size, count in list(found.sizes.items())[:SIZES]]
    facts = {f"no {part}": reason for part, reason in found.refused.items()}
    facts["sizes"] = ", ".join(sizes) + f" and {len(found.sizes) - SIZES} others" * (len(found.sizes) > SIZES)
    facts["odd sizes"] = _finding(found.odd_sizes, "")
    facts["not square"] = _finding(found.not_square, read)
    facts["unreadable"] = "none" + read
    if found.unreadable:
        more = len(found.unreadable) - UNREADABLE
        facts["unreadable"] = "\n  ".join(
            [str(len(found.unreadable)), *found.unreadable[:UNREADABLE], *([f"and {more} more"] if more > 0 else [])]
        )
    if sum(one.samples > 0 for one in found.parts.values()) > 1:
        facts["leaks"] = "none" + read
    for number, leak in enumerate(found.leaks, start=1):
        first, second = leak.parts
        what = "lie on ground that" if leak.what == "ground" else "have an image that"
        pairs = ", ".join(f"{other} and {one}" for one, other in leak.examples)
        facts["leaks" if number == 1 else f"leak {number}"] = (
            f"{leak.samples:,} samples of {second} {what} {first} has too: {pairs}"
        )
    return facts


def _finding(found: "Finding", read: str) -> str:
    if not found.samples:
        return f"none{read}"
    more = found.samples - len(found.examples)
    return f"{found.samples:,}: {', '.join(found.examples)}" + f" and {more:,} more" * (more > 0)
