#!/usr/bin/env python
"""Map an image from Python: in memory, and lazily with dask, so that only what is asked for is computed.

    examples/python_api.py SCENE.tif MAPS/ [MODEL]

SCENE.tif has its bands named (gdalinfo shows it), or red, green and blue in this order. MODEL is a run folder; not
given, it is the packaged model of buildings at 0.2 m.
"""

import sys
from pathlib import Path

import rioxarray

from skysense_core.predict.arrays import predict_array

scene, maps, model = sys.argv[1], Path(sys.argv[2]), (*sys.argv[3:], "buildings-hr")[0]
maps.mkdir(exist_ok=True)

# In memory: an array in, an array out, with the same coordinates and CRS.
image = rioxarray.open_rasterio(scene)
if "long_name" not in image.attrs:
    image = image.assign_coords(band=["red", "green", "blue"])
classes = predict_array(image, model)
classes.rio.to_raster(maps / "classes.tif")

names, (counts, pixel) = classes.attrs["class_names"], (classes.to_series().value_counts(), classes.rio.resolution())
for code, name in enumerate(names):
    print(f"{name}: {counts.get(code, 0) * abs(pixel[0] * pixel[1]):.1f} square map units")

# Lazily: nothing is read or computed before it is asked for; a corner costs what a corner costs.
lazy = rioxarray.open_rasterio(scene, chunks={"x": 1024, "y": 1024}).assign_coords(band=image.band)
result = predict_array(lazy, model, confidence=True)
corner = result.isel(x=slice(0, 100), y=slice(0, 100)).compute()
print(f"least sure in the corner: {float(corner.confidence.min()):.2f}")
