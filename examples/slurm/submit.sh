#!/bin/bash
# Submit an array job over the participants who are not done yet, and the group level after it.
#
#   BIDS_DIR=/data/fmriprep OUTPUT_DIR=/data/neurostorm examples/slurm/submit.sh
#
# Call it again when the array has ended: only participants that failed, or whose task was killed, are submitted again.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=examples/slurm/settings.sh
. "$here/settings.sh"
mkdir -p "$LOG_DIR/ended"

list=$LOG_DIR/$(date +%Y%m%d-%H%M%S)-$$.txt
for folder in "$BIDS_DIR"/sub-*/; do
    label=$(basename "$folder")
    [[ $(cat "$LOG_DIR/ended/$label" 2>/dev/null || true) == 0 ]] || echo "$label"
done | xargs -r -n "$PER_TASK" | head -n "$MAX_TASKS" >"$list"
n_tasks=$(wc -l <"$list")
if ((n_tasks == 0)); then
    echo "every participant of $BIDS_DIR is done"
    rm "$list"
    exit 0
fi

# shellcheck disable=SC2086  # options are words
array=$(sbatch --parsable $SBATCH_OPTIONS --array="1-$n_tasks%$AT_ONCE" --output="$LOG_DIR/%A_%a.log" "$here/participant.sh" "$list")
# shellcheck disable=SC2086
group=$(sbatch --parsable $SBATCH_OPTIONS --dependency="afterany:$array" --output="$LOG_DIR/%j_group.log" "$here/aggregate.sh")
echo "array $array: $(wc -w <"$list") participants in $n_tasks tasks ($list); group level: $group"
