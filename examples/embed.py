#!/usr/bin/env python
"""Find the places of a scene that look like one that is pointed at, by the similarity of their features.

    examples/embed.py SCENE.tif X Y OUT.tif [MODEL]

X, Y is a place in the scene's CRS. OUT.tif holds the cosine similarity of every feature pixel with the one there.
MODEL is a model folder or a run; not given, it is the packaged model of buildings at 0.2 m.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import rioxarray

from skysense_core.embed import EmbedConfig, embed

scene, x, y, out, model = sys.argv[1], *map(float, sys.argv[2:4]), sys.argv[4], (*sys.argv[5:], "buildings-hr")[0]
with tempfile.TemporaryDirectory() as folder:
    features = Path(folder) / "features.tif"
    embed(EmbedConfig(inputs=(scene,), out=features, model=Path(model), dtype="float16"))
    values = rioxarray.open_rasterio(features, masked=True).load()
values = values - values.mean(("y", "x"))
values = values / np.sqrt((values**2).sum("band"))
like = (values * values.sel(x=x, y=y, method="nearest")).sum("band", min_count=1)
like.attrs.clear()
like.astype("float32").rio.write_crs(values.rio.crs).rio.write_nodata(np.nan).rio.to_raster(out)
print(f"{float((like > 0.7).mean()):.1%} of the scene look much like it")
