#!/usr/bin/env bash
# A flood map from an image before and one after: map, polygons with their areas, a page to look at.
#
#   examples/flood.sh MODEL BEFORE.tif AFTER.tif OUT/ [PREDICT OPTION...]
#
# MODEL is one of --task change that reads such images, for instance from the pairs of OMBRIA:
#
#   skysense finetune --task change --data ombria/ --modalities s2 --steps 300 --out runs/floods
#
# AFTER is read onto the grid of BEFORE. OUT/ then holds flood.tif (a map), flood_probabilities.tif, flood.gpkg (the
# flooded patches of at least 1000 square metres, each with name, area_m2 and mean confidence), preview.png and
# areas.txt. Further options go to predict: --bands where the files do not name them, --aoi, --min-area.
# A run that was stopped goes on when it is repeated, and a finished one is left alone.
set -euo pipefail

model=$1 before=$2 after=$3 out=$4
shift 4
mkdir -p "$out"

if [ -e "$out/flood.tif" ]; then
  echo "$out/flood.tif is there" >&2
else
  skysense predict "$before" "$after" --model "$model" --out "$out/flood.tif" --min-area 1000 --probabilities \
    --polygons "$out/polygons.gpkg" --preview "$out/preview.png" "$@" | tee "$out/areas.txt"
fi

# The polygons of the map hold the background, the first class, too.
if [ ! -e "$out/flood.gpkg" ]; then
  python - "$out/polygons.gpkg" "$out/.flood.gpkg" <<'EOF'
import sys

import geopandas

found = geopandas.read_file(sys.argv[1], where="class > 0")
found.to_file(sys.argv[2], layer="flood")
print(f"{len(found)} flooded patches, {found.area_m2.sum() / 1e4:.1f} hectares")
EOF
  mv "$out/.flood.gpkg" "$out/flood.gpkg"
fi
