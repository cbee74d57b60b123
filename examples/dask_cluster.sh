#!/usr/bin/env bash
# Map one large scene on a Dask cluster: here two workers on this machine, elsewhere one per node.
#
#   examples/dask_cluster.sh MODEL SCENE.tif MAP.tif
#
# Workers need the same paths and the same version of skysense. One thread each, as torch has its own:
# on other machines start `dask worker tcp://SCHEDULER:8786 --nthreads 1` with OMP_NUM_THREADS=1.
set -euo pipefail

port=${PORT:-8786}
export OMP_NUM_THREADS=1
dask scheduler --host 127.0.0.1 --port "$port" --no-dashboard &
dask worker "tcp://127.0.0.1:$port" --nworkers 2 --nthreads 1 --no-dashboard &
trap 'kill $(jobs -p)' EXIT

skysense predict "$2" --model "$1" --out "$3" --cluster "tcp://127.0.0.1:$port"
