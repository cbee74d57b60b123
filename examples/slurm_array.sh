#!/usr/bin/env bash
#SBATCH --job-name=skysense
#SBATCH --array=0-7
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
# Map one large scene as a Slurm job array: each task computes its share of the shards, the last one joins them.
#
#   sbatch examples/slurm_array.sh MODEL SCENE.tif MAP.tif
#
# Submit it again after a failure or the time limit: finished shards are kept.
set -euo pipefail

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
srun skysense predict "$2" --model "$1" --out "$3" --shard slurm
