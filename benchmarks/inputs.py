"""How long finding the runs of many participants takes, and what memory it needs.

    python -m benchmarks.inputs [--participants 1000]

A participant has three runs in three spaces and 134 files, as fMRIPrep 21 wrote ds000001; images are stubs of a few
bytes. The tree is made in a temporary folder (134,000 files for 1,000 participants) and removed.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from neurostorm_bids.inputs import find_runs
from neurostorm_bids.settings import Settings

SPACES = ("", "_space-MNI152NLin2009cAsym_res-2", "_space-T1w")
IN_SPACE = ("_desc-preproc_bold.nii.gz", "_desc-preproc_bold.json", "_desc-brain_mask.nii.gz", "_desc-brain_mask.json")
IN_SPACE += ("_boldref.nii.gz", "_desc-aseg_dseg.nii.gz", "_desc-aparcaseg_dseg.nii.gz")
OF_RUN = ("_desc-confounds_timeseries.tsv", "_desc-confounds_timeseries.json", "_space-fsLR_den-91k_bold.dtseries.nii")
OF_RUN += ("_from-scanner_to-T1w_mode-image_xfm.txt", "_from-T1w_to-scanner_mode-image_xfm.txt")
TRANSFORMS = ("T1w_to-MNI152NLin6Asym", "MNI152NLin6Asym_to-T1w", "T1w_to-MNI152NLin2009cAsym")
N_FILES = 134


def names(participant: str) -> list[str]:
    """Paths of one participant's files."""
    runs = [f"func/{participant}_task-balloon_run-{run}" for run in (1, 2, 3)]
    func = [f"{run}{space}{ending}" for run in runs for space in SPACES for ending in IN_SPACE]
    func += [f"{run}{ending}" for run in runs for ending in OF_RUN]
    anat = [f"anat/{participant}_from-{ends}_mode-image_xfm.h5" for ends in TRANSFORMS]
    surfaces = [f"anat/{participant}_hemi-L_desc-{n}_pial.surf.gii" for n in range(N_FILES - len(func) - len(anat))]
    return func + anat + surfaces


def build(root: Path, n_participants: int) -> None:
    """Write a skeleton dataset."""
    root.mkdir()
    description = {"Name": "skeleton", "DatasetType": "derivative", "GeneratedBy": [{"Name": "fMRIPrep"}]}
    (root / "dataset_description.json").write_text(json.dumps(description))
    for n in range(n_participants):
        participant = f"sub-{n:05d}"
        for folder in ("anat", "func"):
            (root / participant / folder).mkdir(parents=True)
        for name in names(participant):
            (root / participant / name).write_text('{"RepetitionTime": 2.0}' if name.endswith(".json") else "stub")


def peak_mib() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(root: Path, **options) -> str:
    """Seconds and memory of one call."""
    import bids.layout  # noqa: F401 - its import is not what is measured

    before, start = peak_mib(), time.perf_counter()
    found = find_runs(Settings(bids_dir=root, output_dir=root.parent / "out", level="participant", **options))
    seconds = time.perf_counter() - start
    return f"{len(found.runs)} runs in {seconds:.2f} s, {peak_mib() - before:.0f} MiB"


def main(argv: list[str] | None = None) -> int:
    """Build, measure one participant and then all, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--participants", type=int, default=1000)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "fmriprep"
        build(root, arguments.participants)
        print("one participant:", measure(root, participant_label=("00000",)))
        print(f"{arguments.participants} participants:", measure(root))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
