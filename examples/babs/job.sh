#!/bin/bash
# What BABS does in a participant's job, for trying it without BABS: unzip, run with the label as BABS gives it and nothing
# but this folder bound, zip, clean up. The folder holds inputs/data/fmriprep/sub-XX_fmriprep-*.zip.
#
#   examples/babs/job.sh sub-01 [neurostorm.sif] [option ...]        without an image: the neurostorm on the PATH
set -eu
subid=$1
image=${2:-}
shift $(($# < 2 ? $# : 2))

zip=$(cd inputs/data/fmriprep && ls "${subid}"_fmriprep*.zip)
(cd inputs/data/fmriprep && python3 -m zipfile -e "$zip" .)
mkdir -p "${PWD}/.git/tmp/wkdir" outputs/neurostorm
if [[ -n $image ]]; then
    app=(singularity run -B "${PWD}" --containall --writable-tmpfs "$image")
else
    app=(neurostorm)
fi
code=0
"${app[@]}" "${PWD}/inputs/data/fmriprep/fmriprep" "${PWD}/outputs/neurostorm" participant \
    -w "${PWD}/.git/tmp/wkdir" --offline "$@" --participant-label "${subid}" || code=$?
if ((code == 0)); then (cd outputs && python3 -m zipfile -c "../${subid}_neurostorm-0-1-0.zip" neurostorm); fi
rm -rf outputs .git/tmp/wkdir inputs/data/fmriprep/fmriprep
exit "$code"
