#!/usr/bin/env bash
# Land cover from one Sentinel-2 scene and a vector file of labelled polygons: train, judge, map.
#
#   examples/finetune_landcover.sh SCENE_FOLDER/ polygons.gpkg COLUMN OUT/ [OPTION...]
#
# Trains on the western part and judges on the eastern one. Further options go to finetune, e.g. --steps 300.
set -euo pipefail

scene=$1
polygons=$2
column=$3
out=$4
shift 4

skysense finetune --task landcover --data s2="$scene" --labels "$polygons" --label-column "$column" \
  --unlabelled ignore --split-by west-east --preset nano --steps 1000 --out "$out/run" "$@"
skysense evaluate --model "$out/run" --split test --baselines --out "$out/evaluation"
skysense predict "$scene" --model "$out/run" --out "$out/map.tif" --preview "$out/preview.png"
