#!/bin/bash
#SBATCH --job-name=neurostorm-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=128G
#SBATCH --time=24:00:00
#SBATCH --signal=SIGTERM@120
#SBATCH --requeue
# Distributed pretraining (DDP): one process a GPU, on several nodes. A job that was requeued, or submitted again, goes on
# where it stopped. The work folder holds points of resume and stored runs: it must be on a file system that all nodes see.
#
#   BIDS_DIR=... OUTPUT_DIR=... WORK_DIR=/shared/work NAME=mymodel sbatch examples/slurm/train.sh [--epochs 30 ...]
set -euo pipefail
: "${BIDS_DIR:?}" "${OUTPUT_DIR:?}" "${WORK_DIR:?}" "${NAME:?}"
# shellcheck disable=SC2086
srun ${NEUROSTORM:-neurostorm} "$BIDS_DIR" "$OUTPUT_DIR" group --group-workflow pretrain --name "$NAME" --resume \
    --devices "$SLURM_NTASKS_PER_NODE" --num-nodes "$SLURM_JOB_NUM_NODES" --nprocs "${SLURM_CPUS_PER_TASK:-1}" \
    --work-dir "$WORK_DIR" "$@"
