#!/usr/bin/env bash
# Buildings of an aerial or satellite image as a GeoPackage, with the packaged model.
#
#   examples/buildings.sh IMAGE.tif OUT/ [PREDICT OPTION...]
#
# The image is RGB with pixels of 0.1 to 0.4 m on the ground. OUT/ then holds buildings.gpkg (an outline for each area,
# with name, area_m2 and mean confidence; those below 10 square metres are left out), the map buildings.tif and a
# preview.png. Neighbours that touch are one area. Further options go to predict: --bands where the file does not say
# which bands are red, green and blue, --aoi FILE, --regions FILE, --min-area 25.
# MODEL=runs/mine takes a model of yours: the packaged one has seen two cities, see docs/models.md.
# A run that was stopped goes on when it is repeated, and a finished one is left alone.
set -euo pipefail

image=$1 out=$2
shift 2
mkdir -p "$out"

if [ -e "$out/buildings.tif" ]; then
  echo "$out/buildings.tif is there" >&2
else
  skysense predict "$image" --model "${MODEL:-buildings-hr}" --out "$out/buildings.tif" --min-area 10 \
    --polygons "$out/polygons.gpkg" --preview "$out/preview.png" "$@" | tee "$out/areas.txt"
fi

# The polygons of the map hold the background, the first class, too.
if [ ! -e "$out/buildings.gpkg" ]; then
  python - "$out/polygons.gpkg" "$out/.buildings.gpkg" <<'EOF'
import sys

import geopandas

found = geopandas.read_file(sys.argv[1], where="class > 0")
found.to_file(sys.argv[2], layer="buildings")
print(f"{len(found)} areas of buildings, {found.area_m2.sum():,.0f} square metres")
EOF
  mv "$out/.buildings.gpkg" "$out/buildings.gpkg"
fi
