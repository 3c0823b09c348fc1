#!/bin/bash
#SBATCH --job-name=neurostorm
#SBATCH --cpus-per-task=4
#SBATCH --mem=6G
#SBATCH --time=02:00:00
# One task of the array: the participants in line SLURM_ARRAY_TASK_ID of the list. Tasks share the output folder: every
# file is written beside its place and renamed.
set -uo pipefail
list=$1
read -ra labels < <(sed -n "${SLURM_ARRAY_TASK_ID}p" "$list")
work=$WORK_DIR/neurostorm-$SLURM_JOB_ID
trap 'rm -rf "$work"' EXIT
memory=() # --mem=0 asks Slurm for all of a node, and says 0
if ((${SLURM_MEM_PER_NODE:-0} > 0)); then memory=(--mem "$SLURM_MEM_PER_NODE"); fi

# shellcheck disable=SC2086  # NEUROSTORM may be several words
$NEUROSTORM "$BIDS_DIR" "$OUTPUT_DIR" participant --participant-label "${labels[@]}" --model "$MODEL" --offline \
    --nprocs "${SLURM_CPUS_PER_TASK:-1}" "${memory[@]}" --work-dir "$work"
code=$?
for label in "${labels[@]}"; do echo "$code" >"$LOG_DIR/ended/$label"; done
exit "$code"
