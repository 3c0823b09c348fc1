"""What a call finds in small datasets: spaces, companions, sidecars, labels and filters."""

from __future__ import annotations

import json
import os

import pytest
from bids.layout import BIDSLayout
from layout_trees import CONTENT, anat_files, build, describe, ends, find, run_files, spaces, write_json

from neurostorm_bids.errors import (
    DatabaseUnusable,
    DatasetMissing,
    NothingSelected,
    NoUsableRun,
    UsageError,
)

MNI = "space-MNI152NLin6Asym"
PREPROC = f"{MNI}_desc-preproc_bold.nii.gz"


def only(found):
    (run,) = found.runs
    return run


def snapshot(root):
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in root.rglob("*")}


# --- images and what belongs to them ----------------------------------------------------------------------------


def test_a_full_run(tmp_path):
    root = build(
        tmp_path / "fmriprep", [*run_files("sub-01_ses-1_task-rest_acq-a_dir-AP_run-01"), *anat_files("sub-01")]
    )
    before = snapshot(root)
    found = find(root)
    run = only(found)
    assert run.name == "sub-01_ses-1_task-rest_acq-a_dir-AP_run-01"
    assert (run.participant, run.session, run.t_r_s, run.start_time_s) == ("01", "1", 2.0, 0.0)
    assert spaces(run) == ["boldref", "MNI152NLin6Asym:2", "T1w"]
    for image, space in zip(run.images, ("", "space-MNI152NLin6Asym_res-2_", "space-T1w_"), strict=True):
        for path, ending in (
            (image.bold, "desc-preproc_bold"),
            (image.mask, "desc-brain_mask"),
            (image.boldref, "boldref"),
        ):
            assert path == root / "sub-01/ses-1/func" / f"{run.name}_{space}{ending}.nii.gz"
    assert ends(run) == {"boldref>T1w", "T1w>boldref", "T1w>MNI152NLin6Asym", "MNI152NLin6Asym>T1w"}
    assert run.confounds.name == f"{run.name}_desc-confounds_timeseries.tsv"
    assert run.confounds_json.name == f"{run.name}_desc-confounds_timeseries.json"
    assert (run.source.pipeline, run.source.version, run.source.denoising) == ("fMRIPrep", "23.1.4", "none")
    assert (run.warnings, found.warnings, found.rejected, found.raw) == ((), (), (), None)
    assert snapshot(root) == before  # the input is only read


def test_the_same_volumes_as_a_pybids_layout_finds(tmp_path):
    root = build(
        tmp_path / "fmriprep",
        [
            *run_files("sub-01_ses-1_task-rest"),
            *run_files("sub-01_ses-2_task-rest_run-01"),
            *run_files("sub-02_task-nback"),
        ],
    )
    layout = BIDSLayout(root, validate=False, is_derivative=True)
    theirs = layout.get(suffix="bold", desc="preproc", extension=".nii.gz", return_type="filename")
    assert sorted(theirs) == sorted(str(image.bold) for run in find(root).runs for image in run.images)


def test_padding_of_run_may_differ_between_files(tmp_path):
    names = [
        *run_files("sub-01_task-rest_run-01", [PREPROC]),
        *run_files("sub-01_task-rest_run-1", [f"{MNI}_desc-brain_mask.nii.gz", "desc-confounds_timeseries.tsv"]),
        *run_files("sub-01_task-rest_run-001", ["from-scanner_to-T1w_mode-image_xfm.txt"]),
    ]
    run = only(find(build(tmp_path / "fmriprep", names)))
    assert run.name == "sub-01_task-rest_run-01"
    assert run.images[0].mask.name.startswith("sub-01_task-rest_run-1_")
    assert run.confounds is not None and ends(run) == {"boldref>T1w"}


def test_resolutions_are_different_images(tmp_path):
    places = ("", "_res-2", "_res-native")
    names = run_files("sub-01_task-rest", [f"{MNI}{res}_desc-preproc_bold.nii.gz" for res in places])
    names += run_files("sub-01_task-rest", [f"{MNI}{res}_desc-brain_mask.nii.gz" for res in ("", "_res-02")])
    run = only(find(build(tmp_path / "fmriprep", names)))
    assert {image.resolution: image.mask and image.mask.name for image in run.images} == {
        None: f"sub-01_task-rest_{MNI}_desc-brain_mask.nii.gz",
        "2": f"sub-01_task-rest_{MNI}_res-02_desc-brain_mask.nii.gz",
        "native": None,
    }


def test_echoes_are_not_the_combined_run(tmp_path):
    echoes = [f"echo-{n}_desc-preproc_bold.nii.gz" for n in (1, 2, 3)]
    root = build(
        tmp_path / "fmriprep", run_files("sub-01_task-rest", [PREPROC, *echoes, f"{MNI}_desc-brain_mask.nii.gz"])
    )
    run = only(find(root))
    assert run.name == "sub-01_task-rest" and spaces(run) == ["MNI152NLin6Asym"]
    path = tmp_path / "echo.json"
    path.write_text('{"bold": {"echo": 2, "space": null}}')
    run = only(find(root, bids_filter_file=path))
    assert run.name == "sub-01_task-rest_echo-2" and spaces(run) == ["boldref"]


def test_magnitude_is_read_and_phase_is_not(tmp_path):
    names = [
        *run_files("sub-01_task-rest_part-mag", [PREPROC, "desc-confounds_timeseries.tsv"]),
        *run_files("sub-01_task-rest_part-phase", [PREPROC, f"{MNI}_desc-brain_mask.nii.gz"]),
        *run_files("sub-01_task-rest_acq-3echo_part-mag", [PREPROC]),
    ]
    found = find(build(tmp_path / "fmriprep", names))
    assert [run.name for run in found.runs] == ["sub-01_task-rest_acq-3echo_part-mag", "sub-01_task-rest_part-mag"]
    assert found.runs[1].confounds is not None and found.runs[1].images[0].mask is None
    assert not found.rejected


def test_older_and_newer_names(tmp_path):
    names = [
        *run_files("sub-01_task-old", [PREPROC, f"{MNI}_label-brain_mask.nii.gz", "desc-confounds_regressors.tsv"]),
        *run_files(
            "sub-01_task-new", ["desc-preproc_bold.nii.gz", "desc-brain_mask.nii.gz", "desc-coreg_boldref.nii.gz"]
        ),
        *run_files("sub-01_task-new", ["desc-hmc_boldref.nii.gz", "from-boldref_to-T1w_mode-image_desc-coreg_xfm.txt"]),
        *run_files("sub-01_task-new", ["from-orig_to-boldref_mode-image_desc-hmc_xfm.txt"]),
        *run_files("sub-01_task-new", ["from-boldref_to-auto00000_mode-image_xfm.txt"]),
    ]
    new, old = find(build(tmp_path / "fmriprep", names)).runs
    assert old.images[0].mask.name.endswith("label-brain_mask.nii.gz")
    assert old.confounds.name.endswith("desc-confounds_regressors.tsv")
    assert new.images[0].boldref.name.endswith("desc-coreg_boldref.nii.gz")
    assert ends(new) == {"boldref>T1w", "orig>boldref"}
    assert new.warnings == ("no confounds table: head motion and non-steady-state volumes are not known",)


def test_files_that_contradict_their_folder_belong_to_nobody(tmp_path):
    root = build(tmp_path / "fmriprep", run_files("sub-01_ses-1_task-rest", [PREPROC]))
    for name in ("sub-02_ses-1_task-rest", "sub-01_ses-2_task-rest", "sub-01_task-rest"):
        (root / "sub-01/ses-1/func" / f"{name}_{PREPROC}").write_bytes(CONTENT)
    assert [run.name for run in find(root).runs] == ["sub-01_ses-1_task-rest"]


def test_variants_of_one_run_are_told_apart_by_their_hash(tmp_path):
    names = [*run_files("sub-01_hash-aa_task-rest", [PREPROC]), *run_files("sub-01_hash-bb_task-rest", [PREPROC])]
    assert [run.name for run in find(build(tmp_path / "f", names)).runs] == [
        "sub-01_hash-aa_task-rest",
        "sub-01_hash-bb_task-rest",
    ]


def test_two_volumes_in_one_space(tmp_path):
    names = [path for run in ("run-1", "run-01") for path in run_files(f"sub-01_task-rest_{run}", [PREPROC])]
    root = build(tmp_path / "fmriprep", [*names, *run_files("sub-02_task-rest", [PREPROC])])
    found = find(root)
    assert [run.name for run in found.runs] == ["sub-02_task-rest"]
    (fault,) = found.rejected
    assert "has 2 volumes in one space" in str(fault) and "run-01" in str(fault) and "run-1_" in str(fault)


def test_a_volume_twice_compressed_and_not(tmp_path):
    root = build(tmp_path / "fmriprep", run_files("sub-01_task-rest", [PREPROC, PREPROC.removesuffix(".gz")]))
    run = only(find(root))
    assert run.images[0].bold.suffix == ".gz" and "there is a .nii and a .nii.gz" in run.warnings[0]
    run.images[0].bold.write_bytes(b"")
    assert only(find(root)).images[0].bold.suffix == ".nii"


# --- transforms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "anat, expected",
    [
        (["sub-01"], {"1": "sub-01", "2": "sub-01"}),
        (["sub-01_ses-1", "sub-01_ses-2"], {"1": "sub-01_ses-1", "2": "sub-01_ses-2"}),
        (["sub-01", "sub-01_ses-1"], {"1": "sub-01_ses-1", "2": "sub-01"}),  # its own goes before the common one
        (["sub-01_ses-1"], {"1": "sub-01_ses-1", "2": "sub-01_ses-1"}),  # anatomy in one session alone
        (["sub-01_ses-0", "sub-01_ses-1"], {"1": "sub-01_ses-1", "2": None}),  # which one is not stated
        (["sub-01_ses-1_run-1"], {"1": "sub-01_ses-1_run-1", "2": "sub-01_ses-1_run-1"}),
    ],
)
def test_anatomical_transforms_of_a_session(tmp_path, anat, expected):
    names = [path for session in "12" for path in run_files(f"sub-01_ses-{session}_task-rest", [PREPROC])]
    names += [path for prefix in anat for path in anat_files(prefix)]
    found = find(build(tmp_path / "fmriprep", names), session_label=("1", "2"))
    for run in found.runs:
        names = {transform.path.name.partition("_from")[0] for transform in run.transforms}
        assert names == ({expected[run.session]} - {None})


def test_transforms_between_the_same_spaces(tmp_path):
    names = [*run_files("sub-01_task-rest", [PREPROC]), *anat_files("sub-01_run-1"), *anat_files("sub-01_run-2")]
    run = only(find(build(tmp_path / "fmriprep", names)))
    assert not run.transforms
    assert any("more than one transform from T1w to MNI152NLin6Asym; none is used" in text for text in run.warnings)


def test_anatomy_from_another_dataset(tmp_path):
    """``--derivatives`` of a dataset with the anatomical outputs alone, as fMRIPrep takes them for its fast track."""
    root = build(tmp_path / "fmriprep", run_files("sub-01_task-rest", [PREPROC]))
    anat = build(tmp_path / "anat", anat_files("sub-01"))
    run = only(find(root, derivatives=(("anat", anat),)))
    assert ends(run) == {"T1w>MNI152NLin6Asym", "MNI152NLin6Asym>T1w"}
    assert run.source.root == root
    build(root, anat_files("sub-01"))  # its own now: they go before the other dataset's
    run = only(find(root, derivatives=(("anat", anat),)))
    assert len(run.transforms) == 2 and all(one.path.is_relative_to(root) for one in run.transforms)


def test_masks_of_a_denoised_dataset_from_its_preprocessed_one(tmp_path):
    denoised = f"{MNI}_res-2_desc-denoised_bold.nii.gz"
    xcp = build(
        tmp_path / "xcp_d", run_files("sub-01_task-rest", [denoised, "motion.tsv"]), pipeline="xcp_d", version="0.10"
    )
    more = [*run_files("sub-01_task-nback"), *anat_files("sub-02")]  # not denoised: no business of this call
    prep = build(tmp_path / "fmriprep", [*run_files("sub-01_task-rest"), *anat_files("sub-01"), *more])
    found = find(xcp, desc="denoised", derivatives=(("fmriprep", prep),))
    assert (len(found.runs), found.rejected) == (1, ())
    run = only(find(xcp, desc="desc-denoised", derivatives=(("fmriprep", prep), ("again", xcp))))
    assert spaces(run) == ["MNI152NLin6Asym:2"]
    assert run.images[0].mask.is_relative_to(prep) and run.images[0].boldref.is_relative_to(prep)
    assert run.confounds.is_relative_to(xcp)  # its rows are those of the denoised series
    assert run.source.root == xcp and run.mean_removed is True
    assert "T1w>MNI152NLin6Asym" in ends(run)


def test_one_run_in_two_datasets(tmp_path):
    one = build(tmp_path / "fmriprep20", run_files("sub-01_task-rest", [PREPROC]))
    two = build(tmp_path / "fmriprep23", run_files("sub-01_task-rest", ["space-T1w_desc-preproc_bold.nii.gz"]))
    with pytest.raises(
        NoUsableRun, match=r"sub-01_task-rest is in 2 datasets: .*fmriprep20.*fmriprep23.*--derivatives"
    ):
        find(one, derivatives=(("two", two),))


# --- sidecars ---------------------------------------------------------------------------------------------------


def sidecar(root, space=MNI):
    return root / "sub-01/func" / f"sub-01_task-rest_{space}_desc-preproc_bold.json"


@pytest.fixture
def plain(tmp_path):
    """One run in two spaces."""
    endings = [PREPROC, "space-T1w_desc-preproc_bold.nii.gz", "desc-confounds_timeseries.tsv"]
    return build(tmp_path / "raw/derivatives/fmriprep", run_files("sub-01_task-rest", endings))


def test_start_time_and_repetition_time(plain):
    write_json(sidecar(plain), RepetitionTime=0.72, StartTime=0.36)
    run = only(find(plain))
    assert (run.t_r_s, run.start_time_s) == (0.72, 0.36)


@pytest.mark.parametrize("content", ["", "{", "[]", b"\xff\xfe{", "\0"])
def test_a_broken_sidecar_is_passed_over(plain, content):
    sidecar(plain).write_bytes(content if isinstance(content, bytes) else content.encode())
    run = only(find(plain))
    assert run.t_r_s == 2.0  # of the other space
    assert any(str(sidecar(plain)) in text and "Passed over" in text for text in run.warnings)
    sidecar(plain, "space-T1w").unlink()
    assert only(find(plain)).t_r_s is None  # the header will be asked


def test_sidecars_are_inherited(plain):
    for path in plain.rglob("*bold.json"):
        path.unlink()
    assert only(find(plain)).t_r_s is None
    raw = plain.parent.parent
    describe(raw, DatasetType="raw")
    write_json(raw / "task-rest_bold.json", RepetitionTime=1.0, StartTime=5.0)
    run = only(find(plain))
    assert (run.t_r_s, run.start_time_s) == (1.0, 0.0)  # the raw series may begin before the preprocessed one
    write_json(plain / "task-rest_bold.json", RepetitionTime=1.1)
    write_json(plain / "task-other_bold.json", RepetitionTime=9.0)
    assert only(find(plain)).t_r_s == 1.1
    write_json(plain / "sub-01/sub-01_bold.json", RepetitionTime=1.2)
    assert only(find(plain)).t_r_s == 1.2
    write_json(plain / "sub-01/func/sub-01_task-rest_bold.json", RepetitionTime=1.3)
    write_json(plain / "sub-01/func/sub-01_task-rest_echo-1_bold.json", RepetitionTime=9.0)
    assert only(find(plain)).t_r_s == 1.3
    write_json(sidecar(plain), RepetitionTime=1.4)
    assert only(find(plain)).t_r_s == 1.4


def test_raw_sidecars_of_single_echoes(plain):
    for path in plain.rglob("*bold.json"):
        path.unlink()
    raw = plain.parent.parent
    describe(raw, DatasetType="raw")
    (raw / "sub-01/func").mkdir(parents=True)
    write_json(raw / "sub-01/func/sub-01_task-rest_echo-1_bold.json", RepetitionTime=1.7)
    assert only(find(plain)).t_r_s == 1.7


@pytest.mark.parametrize("value", [0, -2, 2000, "2.0", True, [2], float("inf"), float("nan")])
def test_repetition_times_that_make_no_sense(plain, value):
    write_json(sidecar(plain), RepetitionTime=value)
    with pytest.raises(NoUsableRun, match=r"RepetitionTime is .*expected seconds, above 0"):
        find(plain)


def test_volume_timing(plain):
    write_json(sidecar(plain), VolumeTiming=[0, 2.5, 5.0, 7.5])
    assert only(find(plain)).t_r_s == 2.5
    for onsets in ([0, 2, 8], [0], [], "0", [0, None, 2], [2, 1, 0]):
        write_json(sidecar(plain), VolumeTiming=onsets)
        with pytest.raises(NoUsableRun, match=r"VolumeTiming is not evenly spaced"):
            find(plain)


def test_start_time_that_is_no_number(plain):
    write_json(sidecar(plain), RepetitionTime=2.0, StartTime="1")
    with pytest.raises(NoUsableRun, match=r"StartTime is '1'.*expected a number of seconds"):
        find(plain)


@pytest.mark.parametrize(
    "desc, stated, expected",
    [("preproc", {}, False), ("denoised", {}, True), ("denoised", {"MeanRemoved": False}, False), ("mine", {}, None)],
)
def test_whether_the_mean_was_removed(tmp_path, desc, stated, expected):
    root = build(tmp_path / "x", run_files("sub-01_task-rest", [f"{MNI}_desc-{desc}_bold.nii.gz"]))
    write_json(root / "sub-01/func" / f"sub-01_task-rest_{MNI}_desc-{desc}_bold.json", RepetitionTime=2.0, **stated)
    run = only(find(root, desc=desc))
    assert run.mean_removed is expected
    assert run.source.denoising == {"preproc": "none", "mine": "not known (desc-mine)"}.get(desc, run.source.denoising)


def test_events_of_the_raw_run_before_those_of_all(plain):
    raw = plain.parent.parent
    describe(raw, DatasetType="raw")
    assert only(find(plain)).events is None
    (raw / "task-rest_events.tsv").write_text("onset\tduration\n")
    assert only(find(plain)).events == raw / "task-rest_events.tsv"
    (raw / "sub-01/func").mkdir(parents=True)
    own = raw / "sub-01/func/sub-01_task-rest_events.tsv"
    own.write_bytes(b"")
    assert only(find(plain)).events == raw / "task-rest_events.tsv"
    own.write_text("onset\tduration\n")
    assert only(find(plain)).events == own


def test_fmriprep_23_2_0(tmp_path):
    names = [*run_files("sub-01_task-rest", [PREPROC]), *run_files("sub-02_task-rest", ["desc-preproc_bold.nii.gz"])]
    mni, native = find(build(tmp_path / "fmriprep", names, version="23.2.0")).runs
    assert any("fmriprep#3237" in text for text in mni.warnings)
    assert not any("fmriprep#3237" in text for text in native.warnings)


# --- labels and filters -----------------------------------------------------------------------------------------


@pytest.fixture
def cohort(tmp_path):
    prefixes = [f"sub-{s}_ses-{v}_task-{t}" for s in ("01", "02", "03") for v in (1, 2) for t in ("rest", "nback")]
    return build(tmp_path / "fmriprep", [path for prefix in prefixes for path in run_files(prefix, [PREPROC])])


def names(found):
    return [run.name for run in found.runs]


def test_labels(cohort):
    assert len(find(cohort).runs) == 12
    assert names(
        find(cohort, participant_label=("sub-03", "01"), session_label=("ses-2",), task_id=("task-rest",))
    ) == [
        "sub-01_ses-2_task-rest",
        "sub-03_ses-2_task-rest",
    ]


def test_labels_of_which_some_are_absent(cohort):
    found = find(cohort, participant_label=("02", "07", "08"), session_label=("2", "9"), task_id=("rest", "xx"))
    assert names(found) == ["sub-02_ses-2_task-rest"]
    assert [text.partition(" in ")[0] for text in found.warnings] == [
        "no participant 07, 08",
        "no usable run of session 9",
        "no usable run of task xx",
    ]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"participant_label": ("1", "2")}, "has none of the participants 1, 2. expected one of 01, 02, 03"),
        (
            {"session_label": ("9",)},
            "has no run that --session-label would select. expected one of sub-01_ses-1_task-nback",
        ),
        ({"task_id": ("xx",), "session_label": ("1",)}, "has no run that --session-label and --task-id would select"),
    ],
)
def test_labels_of_which_all_are_absent(cohort, options, message):
    with pytest.raises(NothingSelected, match=message) as caught:
        find(cohort, **options)
    assert caught.value.exit_code == 18


@pytest.mark.parametrize(
    "query, expected",
    [
        (
            {"task": "rest", "session": "1", "subject": ["01", "02"]},
            ["sub-01_ses-1_task-rest", "sub-02_ses-1_task-rest"],
        ),
        ({"task": "rest", "ses": ["2", None], "sub": "sub-01"}, ["sub-01_ses-2_task-rest"]),
        (
            {"session": "*", "task": "task-nback", "subject": "03", "run": None},
            ["sub-03_ses-1_task-nback", "sub-03_ses-2_task-nback"],
        ),
    ],
)
def test_filter_file(cohort, tmp_path, query, expected):
    path = tmp_path / "filter.json"
    path.write_text(json.dumps({"bold": query, "t2w": {"nonsense": 3}}))
    assert names(find(cohort, bids_filter_file=path)) == expected


def test_filter_file_that_selects_nothing(cohort, tmp_path):
    path = tmp_path / "filter.json"
    for query in ({"session": None}, {"space": "T1w"}, {"run": "*"}):
        path.write_text(json.dumps({"bold": query}))
        with pytest.raises(NothingSelected, match=r"has no run that --bids-filter-file would select"):
            find(cohort, bids_filter_file=path)


def test_filters_on_images_and_companions(tmp_path):
    root = build(tmp_path / "fmriprep", run_files("sub-01_task-rest"))
    path = tmp_path / "filter.json"
    path.write_text('{"bold": {"space": "MNI152NLin6Asym", "res": "02"}, "confounds": {"desc": "other"}}')
    run = only(find(root, bids_filter_file=path))
    assert spaces(run) == ["MNI152NLin6Asym:2"] and run.images[0].mask is not None
    assert run.confounds is None


def test_one_participant_is_asked_for_without_listing_the_others(cohort, monkeypatch):
    listed = []
    scandir = os.scandir

    def spy(path):
        listed.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", spy)
    find(cohort, participant_label=("02",))
    assert any("sub-02" in path for path in listed)
    assert not any(name in path for path in listed for name in ("sub-01", "sub-03"))


def test_a_folder_that_may_not_be_listed_stops_only_its_participant(cohort, monkeypatch):
    scandir = os.scandir

    def closed(path):
        if "sub-02" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = find(cohort)
    assert len(found.runs) == 8
    assert [str(fault) for fault in found.rejected] == [
        f"{cohort / 'sub-02'}: cannot be read: Permission denied. Check its permissions."
    ]


def test_no_participants(tmp_path):
    describe(tmp_path / "fmriprep", DatasetType="derivative", GeneratedBy=[{"Name": "fMRIPrep"}])
    with pytest.raises(DatasetMissing, match=r"has no participants. expected folders named sub-<label>"):
        find(tmp_path / "fmriprep")


def test_input_type_without_a_reader(cohort):
    with pytest.raises(UsageError, match=r"--input-type ds cannot be read. expected auto or fmriprep"):
        find(cohort, input_type="ds")


# --- a PyBIDS index on disk -------------------------------------------------------------------------------------


def test_database_is_made_reused_and_never_renewed(cohort, tmp_path):
    surfaces = ["space-fsaverage5_hemi-L.func.gii", "space-fsLR_den-91k_bold.dtseries.nii"]
    build(cohort, [*run_files("sub-04_ses-1_task-rest"), *anat_files("sub-04"), *run_files("sub-05_task-x", surfaces)])
    walked = find(cohort)
    assert len(walked.runs) == 13 and "only surface data" in str(walked.rejected[0])
    before = snapshot(cohort)
    folder = tmp_path / "db"
    indexed = find(cohort, bids_database_dir=folder)
    assert indexed.runs == walked.runs and [str(one) for one in indexed.rejected] == [
        str(one) for one in walked.rejected
    ]
    assert snapshot(cohort) == before
    made = snapshot(folder)
    build(cohort, run_files("sub-01_ses-3_task-rest", [PREPROC]))
    assert find(cohort, bids_database_dir=folder).runs == walked.runs
    assert snapshot(folder) == made
    assert len(find(cohort).runs) == len(walked.runs) + 1


def test_files_that_vanished_since_the_index_was_made(cohort, tmp_path):
    find(cohort, bids_database_dir=tmp_path / "db")
    (cohort / "sub-01/ses-1/func" / f"sub-01_ses-1_task-rest_{PREPROC}").unlink()
    found = find(cohort, bids_database_dir=tmp_path / "db")
    assert len(found.runs) == 11 and "cannot be found" in str(found.rejected[0])


def test_database_inside_the_input(cohort):
    with pytest.raises(DatabaseUnusable, match=r"lies inside the input.*--bids-database-dir"):
        find(cohort, bids_database_dir=cohort / "db")


def test_database_that_is_none(cohort, tmp_path):
    find(cohort, bids_database_dir=tmp_path / "db", participant_label=("01",))
    (index,) = (tmp_path / "db").rglob("*.sqlite")
    index.write_bytes(b"nonsense" * 200)
    with pytest.raises(DatabaseUnusable, match=r"the index of sub-01 cannot be used.*--bids-database-dir"):
        find(cohort, bids_database_dir=tmp_path / "db", participant_label=("01",))
