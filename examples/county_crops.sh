#!/usr/bin/env bash
# A crop map of a county from a STAC API: search, ingest, train on known fields, map, areas.
#
#   examples/county_crops.sh API COLLECTION PLACE DATES OUT/ FIELDS.gpkg COLUMN [INGEST OPTION...]
#   examples/county_crops.sh API COLLECTION PLACE DATES OUT/ MODEL
#
#   examples/county_crops.sh https://HOST/stac sentinel-2-l2a county.gpkg 2023-04/2023-09 out/ fields.gpkg crop -j 4
#
# PLACE is a file of polygons, or WEST,SOUTH,EAST,NORTH in degrees; COLUMN of FIELDS holds the crop of each polygon. With
# a MODEL of Sentinel-2 that is there already nothing is ingested or learnt. By the environment: MAX_CLOUD (percent of a
# scene, 30), PRESET (nano) and STEPS (2000) of the training.
#
# OUT/ then holds map.tif, its areas.txt and points.gpkg, a sample of the map. Counted areas repeat the errors of the
# map: fill in the column "reference" of the points (in QGIS), save them as interpreted.gpkg, and run this again for
# areas with confidence intervals. A second run does only what is missing; the API is not asked again.
set -euo pipefail

api=$1 collection=$2 place=$3 dates=$4 out=$5
shift 5
if [ -e "$place" ]; then where=(--aoi "$place"); else where=(--bbox="$place" --bbox-crs EPSG:4326); fi
search=("s2=$api" --collections "$collection" "${where[@]}" --datetime "$dates" --max-cloud "${MAX_CLOUD:-30}")
found=$out/store.items/s2/0
mkdir -p "$out"

if [ $# -eq 1 ]; then
  model=$1
  # Searches, keeps the items and counts what they hold; writes no store.
  if [ ! -e "$found" ]; then
    skysense ingest "${search[@]}" --out "$out/store" --dry-run
  fi
else
  model=$out/run
  fields=$1 column=$2
  shift 2
  skysense ingest "${search[@]}" --labels "$fields" --label-column "$column" --unlabelled ignore \
    --out "$out/store" "$@"
  resume=()
  if [ -e "$model/config.toml" ]; then resume=(--resume); fi
  skysense finetune --task crop --data "$out/store" --preset "${PRESET:-nano}" --steps "${STEPS:-2000}" \
    --out "$model" "${resume[@]}"
fi

if [ ! -e "$out/map.tif" ]; then
  skysense predict "s2=$found" --model "$model" "${where[@]}" --out "$out/map.tif" \
    --min-area 2000 | tee "$out/areas.txt"
fi
if [ ! -e "$out/points.gpkg" ]; then
  skysense sample "$out/map.tif" --n 500 --min-per-class 20 --out "$out/points.gpkg"
fi
if [ -e "$out/interpreted.gpkg" ]; then
  skysense area "$out/map.tif" --reference "$out/interpreted.gpkg" | tee "$out/estimated.txt"
fi
