#!/usr/bin/env bash
#SBATCH --job-name=skysense-pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
# Pre-train on all GPUs of some nodes: torchrun starts a process per GPU. Data and RUN lie where every node sees them.
#
#   sbatch examples/pretrain_slurm.sh DATA RUN --preset huge --batch-size 240 --shard-model
#
# Two minutes before the time limit the state is saved; submit the same line again to go on.
set -euo pipefail

data=$1 run=$2
shift 2
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
resume=()
if [ -e "$run/config.toml" ]; then resume=(--resume); fi

srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID" \
  -m skysense_cli pretrain --data "$data" --out "$run" "${resume[@]}" "$@"
