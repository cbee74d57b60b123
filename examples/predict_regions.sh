#!/usr/bin/env bash
# Map several rectangles of one large scene, one file each.
#
#   examples/predict_regions.sh MODEL SCENE.tif regions.txt MAPS/
#
# regions.txt has one region per line: a name and xmin,ymin,xmax,ymax in degrees.
#   north 13.10,52.55,13.20,52.60
#   south 13.10,52.45,13.20,52.50
set -euo pipefail

model=$1
scene=$2
regions=$3
maps=$4
mkdir -p "$maps"

while read -r name bbox; do
  skysense predict "$scene" --model "$model" --bbox="$bbox" --bbox-crs EPSG:4326 \
    --out "$maps/$name.tif" --overwrite --quiet
done <"$regions"
