"""What cannot be used, and what the user is told: each cause with its file and its remedy, all causes together."""

from __future__ import annotations

import json
import pickle
import re
from types import SimpleNamespace

import pytest
from layout_trees import anat_files, build, describe, ends, find, run_files, spaces

from neurostorm_bids.errors import (
    DatasetAmbiguous,
    DatasetInvalid,
    DatasetMissing,
    FileNotFetched,
    FileUnreadable,
    NoUsableRun,
    RunUnusable,
    ValidatorMissing,
)
from neurostorm_bids.inputs import validation
from neurostorm_bids.inputs.datasets import describe as described
from neurostorm_bids.inputs.datasets import locate
from neurostorm_bids.inputs.explain import all_faulty, no_functional_files
from neurostorm_bids.inputs.find import _some, none_usable
from neurostorm_bids.inputs.transforms import NAMED, _left_out

MNI = "space-MNI152NLin6Asym_res-2"
VOLUME = f"{MNI}_desc-preproc_bold.nii.gz"
SURFACE = "--output-spaces MNI152NLin6Asym:res-2"
MINIMAL = (  # what fMRIPrep 25 writes for a run at --level minimal
    "desc-hmc_boldref.nii.gz",
    "desc-coreg_boldref.nii.gz",
    "desc-brain_mask.nii.gz",
    "from-boldref_to-T1w_mode-image_desc-coreg_xfm.txt",
    "from-orig_to-boldref_mode-image_desc-hmc_xfm.txt",
)


def only(found):
    (run,) = found.runs
    return run


# --- runs without a volume --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endings, message",
    [
        (MINIMAL, f"no preprocessed volume and no confounds .*--level minimal.*with --level full {SURFACE}"),
        ([*MINIMAL, "desc-confounds_timeseries.tsv"], f"no preprocessed volume .*found confounds alone.*{SURFACE}"),
        (["space-fsLR_den-91k_bold.dtseries.nii"], f"only surface data .found space-fsLR dtseries.nii; .*{SURFACE}"),
        (
            ["bold.dtseries.nii", "space-fsaverage5_hemi-L.func.gii"],
            "only surface data .found dtseries.nii, space-fsaverage5 func.gii",
        ),
        (["echo-1_desc-preproc_bold.nii.gz"], "only single echoes .*choose one echo with --bids-filter-file"),
        (
            [f"{MNI}_desc-denoised_bold.nii.gz"],
            "no desc-preproc volume .found desc denoised.*Choose with --desc denoised",
        ),
        ([f"{MNI}_bold.nii.gz"], "no desc-preproc volume .found desc none"),
    ],
)
def test_runs_without_a_volume(tmp_path, endings, message):
    root = build(tmp_path / "fmriprep", [*run_files("sub-01_task-rest", endings), *anat_files("sub-01")])
    with pytest.raises(NoUsableRun, match=f"sub-01_task-rest has {message}") as caught:
        find(root)
    assert caught.value.exit_code == 65 and str(root / "sub-01/func") in str(caught.value)


def test_a_run_without_a_volume_beside_a_good_one(tmp_path):
    names = [*run_files("sub-01_task-rest"), *run_files("sub-01_task-nback", MINIMAL)]
    found = find(build(tmp_path / "fmriprep", names))
    assert only(found).name == "sub-01_task-rest"
    (fault,) = found.rejected
    assert "sub-01_task-nback has no preprocessed volume" in str(fault) and fault.exit_code == 1
    assert str(pickle.loads(pickle.dumps(fault))) == str(fault)


def test_anatomy_alone(tmp_path):
    with pytest.raises(NoUsableRun, match=r"sub-01 has no functional files.*without --anat-only"):
        find(build(tmp_path / "fmriprep", anat_files("sub-01")))


def test_concatenations_are_no_runs(tmp_path):
    volume = f"{MNI}_desc-denoised_bold.nii.gz"
    prefixes = ("sub-01_task-a", "sub-01_task-a_run-1", "sub-01_task-a_run-2", "sub-01_task-b")
    root = build(tmp_path / "x", [path for one in prefixes for path in run_files(one, [volume])], pipeline="XCP-D")
    found = find(root, desc="denoised")
    assert [run.name for run in found.runs] == list(prefixes[1:])
    assert found.warnings == ("sub-01_task-a: a concatenation of other runs, left out",)
    build(root, [])  # in fMRIPrep's output, a first run without a number is a run like any other
    assert sorted(run.name for run in find(root, desc="denoised").runs) == sorted(prefixes)


def test_all_faults_are_told_together_and_each_kind_once(tmp_path):
    names = [
        path for n in range(40) for path in run_files(f"sub-{n:02d}_task-a", ["space-fsLR_den-91k_bold.dtseries.nii"])
    ]
    names += [path for n in range(3) for path in run_files(f"sub-{n:02d}_task-b", MINIMAL)]
    root = build(tmp_path / "fmriprep", names)
    with pytest.raises(NoUsableRun) as caught:
        find(root)
    text = str(caught.value)
    assert text.count("only surface data") == 1 and "The same holds for 39 more" in text
    assert text.count("--level minimal") == 1 and "The same holds for 2 more" in text


# --- files that are there by name only --------------------------------------------------------------------------


def unlink_content(path):
    path.unlink()
    path.symlink_to("../../.git/annex/objects/XX/YY/MD5E-s1000--abc.nii.gz/MD5E-s1000--abc.nii.gz")


def unlock(path):
    path.write_text("/annex/objects/MD5E-s1000--abc.nii.gz\n")


def truncate(path):
    path.write_bytes(b"")


def make_folder(path):
    path.unlink()
    path.mkdir()


FAULTS = [
    (unlink_content, r"not fetched.*Run `datalad get .*nii.gz`"),
    (unlock, r"not fetched.*Run `datalad get .*nii.gz`"),
    (truncate, r"is empty \(0 bytes\).*placeholder"),
    (make_folder, "is not a regular file"),
]


@pytest.fixture
def root(tmp_path):
    return build(tmp_path / "fmriprep", [*run_files("sub-01_task-rest"), *anat_files("sub-01")])


def file_of(root, ending):
    return root / "sub-01/func" / f"sub-01_task-rest_{ending}"


@pytest.mark.parametrize("spoil, message", FAULTS)
@pytest.mark.parametrize("ending", [VOLUME, f"{MNI}_desc-brain_mask.nii.gz"])
def test_an_image_that_cannot_be_read_is_left_out(root, spoil, message, ending):
    spoil(file_of(root, ending))
    run = only(find(root))
    assert spaces(run) == ["boldref", "T1w"]
    (warning,) = run.warnings
    assert str(file_of(root, ending)) in warning
    assert re.search(message, warning)


@pytest.mark.parametrize("spoil, message", FAULTS)
def test_a_run_whose_images_cannot_be_read(tmp_path, spoil, message):
    root = build(tmp_path / "fmriprep", run_files("sub-01_task-rest", [VOLUME]))
    spoil(file_of(root, VOLUME))
    with pytest.raises(NoUsableRun, match=message):
        find(root)


def test_a_run_with_several_images_that_cannot_be_read(root):
    for ending in (VOLUME, "desc-preproc_bold.nii.gz", "space-T1w_desc-preproc_bold.nii.gz"):
        unlink_content(file_of(root, ending))
    with pytest.raises(NoUsableRun, match=r"sub-01_task-rest has no usable image: not fetched.*datalad get") as caught:
        find(root)
    assert str(caught.value).count("desc-preproc_bold.nii.gz") >= 3


@pytest.mark.parametrize("spoil", [unlink_content, truncate])
def test_confounds_and_transforms_that_cannot_be_read(root, spoil):
    anat = root / "sub-01/anat/sub-01_from-T1w_to-MNI152NLin6Asym_mode-image_xfm.h5"
    for path in (file_of(root, "desc-confounds_timeseries.tsv"), file_of(root, f"{MNI}_boldref.nii.gz"), anat):
        spoil(path)
    run = only(find(root))
    assert run.confounds is None and "T1w>MNI152NLin6Asym" not in ends(run)
    assert [image.boldref is None for image in run.images] == [False, True, False]
    assert any("Head motion is not known" in text for text in run.warnings)
    (about,) = [text for text in run.warnings if "transforms left out" in text]
    assert str(anat) in about and ("datalad get" in about) == (spoil is unlink_content)


def test_a_dataset_whose_participants_were_not_installed(tmp_path):
    root = build(tmp_path / "fmriprep", [])
    (root / ".gitmodules").write_text("")
    (root / "sub-01").mkdir()
    with pytest.raises(NoUsableRun, match=r"sub-01: not fetched.*Run `datalad get .*sub-01`"):
        find(root)


def test_a_file_without_read_permission(root, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).endswith(VOLUME))
    run = only(find(root))
    assert "cannot be read: permission denied" in run.warnings[0]


# --- which dataset ----------------------------------------------------------------------------------------------


def plain(root, **options):
    return build(root, run_files("sub-01_task-rest", [VOLUME]), **options)


def raw(root, **content):
    build(root, ["sub-01/func/sub-01_task-rest_bold.nii.gz"], pipeline=None)
    describe(root, **{"DatasetType": "raw", **content})
    return root


def test_a_raw_dataset_with_derivatives_beneath(tmp_path):
    root = raw(tmp_path / "raw")
    prep = plain(root / "derivatives/fmriprep-23.1.4")
    build(root / "derivatives/mriqc", ["sub-01/func/sub-01_task-rest_bold.json"], pipeline="MRIQC")
    build(root / "derivatives/freesurfer", ["sub-01/mri/T1.mgz"], pipeline=None)
    plain(root / "derivatives/xcp_d", pipeline="XCP-D")
    found = find(root, skip_bids_validation=True)
    assert (found.dataset.root, found.raw) == (prep, root)
    assert find(prep).raw == root  # from the other side


def test_derivatives_by_name(tmp_path):
    root, prep = raw(tmp_path / "raw"), plain(tmp_path / "elsewhere")
    assert find(root, derivatives=(("x", prep),), skip_bids_validation=True).dataset.root == prep
    with pytest.raises(DatasetMissing, match=r"is a raw dataset. expected derivatives"):
        find(root, derivatives=(("x", raw(tmp_path / "other")),))


def test_two_preprocessed_datasets(tmp_path):
    root = raw(tmp_path / "raw")
    old, new = (plain(root / f"derivatives/fmriprep-{v}", version=v) for v in ("20.2.7", "23.1.4"))
    with pytest.raises(DatasetAmbiguous) as caught:
        find(root)
    text = str(caught.value)
    assert caught.value.exit_code == 2
    assert "fmriprep-20.2.7 (fMRIPrep 20.2.7) and fmriprep-23.1.4 (fMRIPrep 23.1.4)" in text
    assert f"--derivatives fmriprep-20.2.7={old} or --derivatives fmriprep-23.1.4={new}" in text


def test_the_folder_around_a_dataset(tmp_path):
    prep = plain(tmp_path / "out/fmriprep")  # fMRIPrep's legacy output layout
    build(tmp_path / "out/freesurfer", ["sub-01/mri/T1.mgz"], pipeline=None)
    assert find(tmp_path / "out").dataset.root == prep
    within = plain(tmp_path / "all/derivatives")
    assert find(tmp_path / "all").dataset.root == within


def test_a_folder_of_versions(tmp_path):
    root = raw(tmp_path / "raw")
    old = plain(root / "derivatives/fmriprep/20.2.7", pipeline=None)
    assert find(root, skip_bids_validation=True).dataset.root == old
    plain(root / "derivatives/fmriprep/23.1.4")
    with pytest.raises(DatasetAmbiguous, match=r"holds 20.2.7 \(unknown\) and 23.1.4 \(fMRIPrep 23.1.4\)"):
        find(root)


def test_pipelines_that_write_no_bold(tmp_path):
    root = raw(tmp_path / "raw")
    other = build(root / "derivatives/mriqc", ["sub-01/func/sub-01_task-rest_bold.json"], pipeline="MRIQC")
    with pytest.raises(DatasetMissing, match=r"holds no derivatives of fMRIPrep"):
        find(root)
    for options in ({"root": other}, {"root": root, "derivatives": (("x", other),)}):
        with pytest.raises(DatasetMissing, match=r"mriqc: was written by MRIQC. expected the output of fMRIPrep"):
            find(**options)


def test_derivatives_that_were_not_installed(tmp_path):
    root = raw(tmp_path / "raw")
    (root / "derivatives/fmriprep").mkdir(parents=True)
    with pytest.raises(DatasetMissing, match=r"derivatives/fmriprep: is empty.*datalad get"):
        find(root)


@pytest.mark.parametrize(
    "content, pipeline, warning",
    [
        ({"PipelineDescription": {"Name": "fMRIPrep", "Version": "1.5.10"}}, "fMRIPrep", "DatasetType missing"),
        ({"DatasetType": "derivative"}, "unknown", "GeneratedBy missing"),
        ({"GeneratedBy": [{"Name": "mine"}]}, "mine", "DatasetType missing"),
        ({"DatasetType": "derivative", "GeneratedBy": [{"Name": "mine"}]}, "mine", "pipeline 'mine' is not known"),
        ({"DatasetType": "derivative", "GeneratedBy": "?"}, "unknown", None),
        (None, "unknown", "dataset_description.json: missing; what wrote this dataset is judged from file names"),
        ("", "unknown", r"is empty .0 bytes.*judged from file names"),
        ("{", "unknown", "is no JSON.*judged from file names"),
    ],
)
def test_descriptions(tmp_path, content, pipeline, warning):
    root = plain(tmp_path / "d", pipeline=None)
    if isinstance(content, str):
        (root / "dataset_description.json").write_text(content)
    elif content is not None:
        describe(root, **content)
    found = find(root)
    assert found.dataset.pipeline == pipeline and len(found.runs) == 1
    assert warning is None or re.search(warning, " ".join(found.warnings))


def test_a_raw_dataset_that_names_its_converter_is_raw(tmp_path):
    root = raw(tmp_path / "raw")
    describe(root, GeneratedBy=[{"Name": "HeuDiConv"}])
    assert described(root).kind == "raw"


def test_folders_that_hold_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name, message in {"empty": "is empty", "absent": "is no folder", "file": "is no folder"}.items():
        with pytest.raises(
            DatasetMissing, match=f"{message}. expected an fMRIPrep output folder.*datalad get"
        ) as caught:
            locate(tmp_path / name)
        assert caught.value.exit_code == 66
    raw(tmp_path / "raw")
    with pytest.raises(DatasetMissing, match=r"holds no derivatives of fMRIPrep.*--derivatives NAME=PATH"):
        find(tmp_path / "raw")


def test_the_folder_of_a_participant(tmp_path):
    root = plain(tmp_path / "fmriprep")
    with pytest.raises(DatasetMissing, match=f"is the folder of one participant.*Give {root} --participant-label 01"):
        find(root / "sub-01")


# --- validation of raw datasets ---------------------------------------------------------------------------------


@pytest.fixture
def valid(tmp_path):
    """A raw dataset to which the validator has no objection, although its image was not fetched."""
    root = tmp_path / "raw"
    describe(root, DatasetType="raw", Authors=["A", "B"], License="CC0")
    (root / "README").write_text("A dataset for tests of dataset validation, with one participant and one run.\n" * 3)
    (root / "sub-01/func").mkdir(parents=True)
    unlinked = root / "sub-01/func/sub-01_task-rest_bold.nii.gz"
    key = f"MD5E-s1000--{'0123456789abcdef' * 2}.nii.gz"
    unlinked.symlink_to(f"../../.git/annex/objects/XX/YY/{key}/{key}")
    (root / "task-rest_bold.json").write_text('{"TaskName": "rest", "RepetitionTime": 2.0}')
    plain(root / "derivatives/fmriprep")
    return root


def test_a_valid_raw_dataset(valid):
    assert len(find(valid).runs) == 1


def test_empty_raw_images_are_told_and_stop_nothing(valid):
    image = valid / "sub-01/func/sub-01_task-rest_bold.nii.gz"
    image.unlink()
    image.write_bytes(b"")
    found = find(valid)
    assert len(found.runs) == 1
    assert found.warnings == (f"{valid}: 1 raw images are empty, such as /sub-01/func/sub-01_task-rest_bold.nii.gz",)


def test_an_invalid_raw_dataset(valid):
    for name in ("one", "two", "three", "four"):
        (valid / f"{name}.xyz").write_text("x")
    with pytest.raises(
        DatasetInvalid, match=r"is no valid BIDS dataset: NOT_INCLUDED .*and 1 more.*--skip-bids"
    ) as caught:
        find(valid)
    assert caught.value.exit_code == 16
    assert len(find(valid, skip_bids_validation=True).runs) == 1
    assert len(find(valid / "derivatives/fmriprep").runs) == 1  # derivatives are not validated


def test_the_validator_is_missing(valid, monkeypatch):
    monkeypatch.setattr(validation, "VALIDATOR", "no-such-validator")
    with pytest.raises(ValidatorMissing, match=r"no-such-validator is not installed.*--skip-bids-validation"):
        find(valid)


def test_the_validator_answers_nonsense(valid, monkeypatch):
    monkeypatch.setattr(validation, "_executable", lambda: "/bin/echo")
    with pytest.raises(ValidatorMissing, match=r"failed on .*--skip-bids-validation"):
        find(valid)


# --- the words of many faults -----------------------------------------------------------------------------------


def fault(name: str, expected: str = "a volume") -> RunUnusable:
    return RunUnusable(f"{name} is odd", file=f"{name}.nii", expected=expected, remedy="Mend it")


def test_faults_of_a_kind_are_counted_and_kinds_numbered(tmp_path):
    told = none_usable([fault("a"), fault("b", "a table"), fault("c"), fault("d")], tmp_path)
    assert told.file == tmp_path
    assert told.fault == (
        f"no run can be used: (1) {fault('a')} The same holds for 2 more. (2) {fault('b', 'a table')}"
    )
    many = none_usable([fault(str(n), expected=str(n)) for n in range(7)], tmp_path)
    assert many.fault.endswith(f"(5) {fault('4', '4')} and 2 other faults")
    assert "other faults" not in none_usable([fault(str(n), expected=str(n)) for n in range(5)], tmp_path).fault


@pytest.mark.parametrize(
    ("n", "files"),
    [(1, "0.nii"), (2, "0.nii, 1.nii"), (3, "0.nii, 1.nii, 2.nii"), (5, "0.nii, 1.nii, 2.nii and 2 more")],
)
def test_a_run_names_three_of_its_faulty_files(n: int, files: str):
    told = all_faulty(SimpleNamespace(name="sub-01_task-rest"), [fault(str(number)) for number in range(n)])
    what = "0 is odd" if n == 1 else "sub-01_task-rest has no usable image: 0 is odd"
    assert (told.fault, str(told.file), told.expected, told.remedy) == (what, files, "a volume", "Mend it")


def test_a_participant_without_functional_files_is_told_with_its_folders(tmp_path):
    bare, full = tmp_path / "bare" / "sub-01", tmp_path / "full" / "sub-01"
    bare.mkdir(parents=True)
    (full / "anat").mkdir(parents=True)
    told = no_functional_files("01", [tmp_path / "none", bare, full])
    assert str(told.file) == f"{tmp_path / 'none'}, {bare}, {full}" and told.expected == "a func folder"
    (full.parent / ".gitmodules").touch()  # a subdataset that is there: nothing is to be fetched
    assert no_functional_files("01", [full]).expected == "a func folder"
    (bare.parent / ".gitmodules").touch()
    assert f"datalad get {bare}" in no_functional_files("01", [full, bare]).remedy


def test_labels_are_named_five_at_most():
    assert _some(["a", "b"]) == "a, b"
    assert _some(list("abcde")) == "a, b, c, d, e"
    assert _some(list("abcdefg")) == "a, b, c, d, e and 2 more"


@pytest.mark.parametrize(
    ("issue", "words"),
    [
        ({"code": "A", "subCode": "B", "location": "/x"}, "A B (/x)"),
        ({"code": "A", "location": "/x"}, "A (/x)"),
        ({"code": "A"}, "A"),
    ],
)
def test_what_the_validator_found_is_told_with_its_place(issue: dict, words: str):
    assert validation._told(issue) == words


# --- what a description says, and what it leaves open -----------------------------------------------------------

FMRIPREP = {"Name": "fMRIPrep", "Version": "24.1.0"}
GAPS = "{place}: {missing} missing; taken for a derivative dataset"
UNKNOWN = "{place}: pipeline 'Ours' is not known; its files are read as fMRIPrep's"


@pytest.mark.parametrize(
    ("description", "name", "expected"),
    [
        ({"DatasetType": "raw", "GeneratedBy": [FMRIPREP]}, VOLUME, ("raw", "fMRIPrep", "24.1.0", [])),
        (
            {"DatasetType": "derivative", "GeneratedBy": [FMRIPREP]},
            "bold.nii",
            ("derivative", "fMRIPrep", "24.1.0", []),
        ),
        ({"GeneratedBy": [FMRIPREP]}, "bold.nii", ("derivative", "fMRIPrep", "24.1.0", ["DatasetType"])),
        ({"PipelineDescription": {"Name": "Ours"}}, "bold.nii", ("derivative", "Ours", None, ["DatasetType", UNKNOWN])),
        ({"GeneratedBy": [{"Name": "heudiconv"}]}, "bold.nii.gz", ("raw", "heudiconv", None, [])),
        ({"Name": "x"}, "bold.nii.gz", ("raw", "unknown", None, [])),
        ({"Name": "x"}, VOLUME, ("derivative", "unknown", None, ["DatasetType and GeneratedBy"])),
        ({"GeneratedBy": ["x"], "Name": "x"}, VOLUME, ("derivative", "unknown", None, ["DatasetType"])),
        ({"Name": "x"}, None, ("raw", "unknown", None, [])),
        ({}, None, ("container", "unknown", None, [])),
    ],
)
def test_the_kind_of_a_dataset(tmp_path, description, name, expected):
    place = tmp_path / "dataset_description.json"
    place.write_text(json.dumps(description))
    if name is not None:
        (tmp_path / "sub-01/func").mkdir(parents=True)
        (tmp_path / "sub-01/func" / f"sub-01_task-rest_{name}").touch()
    found = described(tmp_path)
    kind, pipeline, version, gaps = expected
    assert (found.root, found.kind, found.pipeline, found.version) == (tmp_path, kind, pipeline, version)
    assert list(found.warnings) == [
        (GAPS if gap != UNKNOWN else UNKNOWN).format(place=place, missing=gap) for gap in gaps
    ]


def test_a_description_that_is_missing_is_warned_of_where_there_are_data(tmp_path):
    (tmp_path / "fmriprep").mkdir()
    assert described(tmp_path).warnings == ()  # a folder of datasets needs none
    (tmp_path / "sub-01/func").mkdir(parents=True)
    (tmp_path / "sub-01/func" / f"sub-01_task-rest_{VOLUME}").touch()
    (warning,) = described(tmp_path).warnings
    assert (
        warning
        == f"{tmp_path / 'dataset_description.json'}: missing; what wrote this dataset is judged from file names"
    )


@pytest.mark.parametrize(
    ("n_absent", "n_links", "words"),
    [(1, 0, "cannot be found: 0.h5"), (2, 1, "cannot be found: 0.h5, 1.h5; run `datalad get` on them"), (0, 0, None)],
)
def test_transforms_that_are_left_out_are_named(n_absent: int, n_links: int, words: str | None):
    kinds = [FileNotFetched] * n_links + [FileUnreadable] * (n_absent - n_links)
    faults = [kind("cannot be found", file=f"{n}.h5", remedy="Fetch it") for n, kind in enumerate(kinds)]
    assert _left_out(faults) == ([f"transforms left out, {words}"] if words else [])
    more = [FileUnreadable("is gone", file=f"{n}.h5", remedy="Fetch it") for n in range(NAMED + 2)]
    assert _left_out(more)[0].endswith(f"{NAMED - 1}.h5 and 2 more")
