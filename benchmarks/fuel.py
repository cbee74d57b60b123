"""Live fuel moisture of Presto's repository (150 sites of the western USA) as a table of series.

    python benchmarks/fuel.py ../shared/data/sits_pixel/presto_fuel_moisture runs/fuel.parquet

The arrays hold three months a row. Bands of Sentinel-1 (dB) and Sentinel-2 (L1C) are kept; weather and terrain, which
the model does not read, are left out. The months have no year: 2019 stands for any. Sites that test never train.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

BANDS = ("VV", "VH", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
"""First columns of the array, in its order."""
LEFT_OUT = ("B09",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    load = {name: np.load(options.folder / f"{name}.npy") for name in ("month", "is_test", "site", "target", "latlon")}
    pixels = np.load(options.folder / "s1_s2_era5_srtm.npy")
    rows, steps = pixels.shape[:2]
    table = {
        "id": np.arange(rows).repeat(steps),
        "date": [f"2019-{month + 1:02d}-15" for month in load["month"].ravel()],
        "moisture": load["target"].repeat(steps),
        "site": load["site"].repeat(steps),
        "split": np.where(load["is_test"], "test", "train").repeat(steps),
        "lat": load["latlon"][:, 0].repeat(steps),
        "lon": load["latlon"][:, 1].repeat(steps),
        **{name: pixels[..., k].ravel() for k, name in enumerate(BANDS) if name not in LEFT_OUT},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_parquet(options.out)
    print(f"{rows} rows of {steps} months, {int(load['is_test'].sum())} of them test: {options.out}")


if __name__ == "__main__":
    main()
