#!/usr/bin/env bash
# Map one large scene in parts, several processes at a time, and join the parts.
#
#   examples/regions_xargs.sh MODEL SCENE.tif MAP.tif [PIXELS] [PROCESSES]
#
# A part appears under its name only when it is whole: after a stop, run it again, and only missing parts are made.
# Give each process its share of the cores (OMP_NUM_THREADS).
set -euo pipefail

export model=$1
export scene=$2
map=$3
export parts=${map%.*}_parts
mkdir -p "$parts"

map_region() {
  if [ ! -e "$parts/$1.tif" ]; then
    skysense predict "$scene" --model "$model" --bbox="$2" --out "$parts/$1.tif" --quiet
  fi
}
export -f map_region

skysense regions "$scene" --size "${4:-8192}" | xargs -P "${5:-2}" -n 2 bash -c 'map_region "$@"' _
skysense mosaic "$parts" --out "$map" --overwrite
