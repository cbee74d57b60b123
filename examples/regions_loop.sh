#!/usr/bin/env bash
# Map one large scene part by part in a plain loop, and join the parts.
#
#   examples/regions_loop.sh MODEL SCENE.tif MAP.tif [PIXELS]
#
# A part appears under its name only when it is whole: after a stop, run it again, and only missing parts are made.
set -euo pipefail

model=$1
scene=$2
map=$3
parts=${map%.*}_parts
mkdir -p "$parts"

regions=$(skysense regions "$scene" --size "${4:-8192}")
while IFS=$'\t' read -r id bbox; do
  if [ ! -e "$parts/$id.tif" ]; then
    skysense predict "$scene" --model "$model" --bbox="$bbox" --out "$parts/$id.tif" --quiet
  fi
done <<<"$regions"
skysense mosaic "$parts" --out "$map" --overwrite
