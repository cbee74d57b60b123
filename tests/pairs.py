"""Pairs of pictures in which squares appear between two dates, in the layouts of change detection."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_levir(folder: Path, *, side: int = 64, count: int = 4, listed: bool = False) -> Path:
    """Pictures before (A), after (B) and their masks; in folders of parts, or in one with lists."""
    for part in ("train", "val", "test"):
        root = folder if listed else folder / part
        for name in ("A", "B", "label"):
            (root / name).mkdir(parents=True, exist_ok=True)
        names = []
        for number in range(count):
            rng = np.random.default_rng([len(part), number])
            before = rng.integers(60, 100, (side, side, 3)).astype(np.uint8)
            after = rng.integers(60, 100, (side, side, 3)).astype(np.uint8)
            row, col = rng.integers(0, side // 2, 2)
            changed = np.zeros((side, side), dtype=np.uint8)
            changed[row : row + side // 2, col : col + side // 2] = 255
            after[changed > 0] += 120
            names.append(f"{part}_{number}.png")
            for kind, picture in (("A", before), ("B", after), ("label", changed)):
                Image.fromarray(picture).save(root / kind / names[-1])
        if listed:
            (folder / "list").mkdir(exist_ok=True)
            (folder / "list" / f"{part}.txt").write_text("\n".join(names) + "\n")
    return folder
