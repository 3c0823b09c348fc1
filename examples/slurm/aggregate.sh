#!/bin/bash
#SBATCH --job-name=neurostorm-group
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=02:00:00
# One row per participant and session, of all results that are in the output folder.
set -uo pipefail
work=$WORK_DIR/neurostorm-$SLURM_JOB_ID
trap 'rm -rf "$work"' EXIT
# shellcheck disable=SC2086
$NEUROSTORM "$BIDS_DIR" "$OUTPUT_DIR" group --group-workflow aggregate --work-dir "$work"
