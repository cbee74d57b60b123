#!/usr/bin/env bash
# Map every scene of a folder, and go on where a former run of this script stopped.
#
#   examples/predict_scenes.sh MODEL SCENES/ MAPS/
#
# A map appears under its name only when it is whole, so an existing one is finished and skipped.
# Several at a time: raise -P, and give each process fewer threads (OMP_NUM_THREADS).
set -euo pipefail

model=$1
scenes=$2
maps=$3
mkdir -p "$maps"

map_scene() {
  local map="$3/$(basename "${2%.*}").tif"
  if [ -e "$map" ]; then
    echo "$map is there" >&2
  else
    skysense predict "$2" --model "$1" --out "$map" --quiet
  fi
}
export -f map_scene

find "$scenes" -maxdepth 1 -name '*.tif' -print0 | sort -z |
  xargs -0 -P 1 -I {} bash -c 'map_scene "$@"' _ "$model" {} "$maps"
