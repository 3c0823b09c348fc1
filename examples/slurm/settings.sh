# shellcheck shell=bash
# What the scripts of this folder share: edit it, or set the variables before you call submit.sh.
BIDS_DIR=${BIDS_DIR:-/data/fmriprep}             # read only
OUTPUT_DIR=${OUTPUT_DIR:-/data/neurostorm}       # all tasks write here
WORK_DIR=${WORK_DIR:-${TMPDIR:-/tmp}}            # scratch on the node, private to a task
LOG_DIR=${LOG_DIR:-$OUTPUT_DIR/logs/slurm}       # Slurm's logs, the lists of participants, and how each ended
MODEL=${MODEL:-demo}
PER_TASK=${PER_TASK:-1}                          # participants of one array task: more where one takes less than a minute or so
MAX_TASKS=${MAX_TASKS:-1000}                     # longest array that the cluster takes (scontrol show config: MaxArraySize)
AT_ONCE=${AT_ONCE:-100}                          # tasks that may run at the same time
# the program, or the image of it:
#   NEUROSTORM="apptainer run --containall --writable-tmpfs -B $BIDS_DIR:$BIDS_DIR:ro -B $OUTPUT_DIR -B $WORK_DIR neurostorm.sif"
NEUROSTORM=${NEUROSTORM:-neurostorm}
SBATCH_OPTIONS=${SBATCH_OPTIONS:-}               # --account=..., --partition=...
export BIDS_DIR OUTPUT_DIR WORK_DIR LOG_DIR MODEL NEUROSTORM
