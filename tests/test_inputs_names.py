"""File names to entities by PyBIDS' grammar, queries, and the names of spaces."""

from __future__ import annotations

import json

import pytest
from bids.layout import parse_file_entities
from hypothesis import given
from hypothesis import strategies as st

from neurostorm_bids.errors import FilterUnusable
from neurostorm_bids.inputs.groups import run_key, short_names
from neurostorm_bids.inputs.names import Query, canonical, io_spec, is_part_of, parse_name
from neurostorm_bids.inputs.queries import make_queries, read_filters
from neurostorm_bids.inputs.spaces import ends_of, normalised, space_of

labels = st.from_regex(r"[a-zA-Z0-9]{1,8}", fullmatch=True)
numbers = st.from_regex(r"[0-9]{1,3}", fullmatch=True)
run_entities = st.fixed_dictionaries(
    {"subject": labels},
    optional={
        "session": labels,
        "task": labels,
        "acquisition": labels,
        "ceagent": labels,
        "reconstruction": labels,
        "direction": labels,
        "run": numbers,
        "echo": numbers,
        "part": st.sampled_from(["mag", "phase"]),
    },
)
image_entities = st.fixed_dictionaries({}, optional={"space": labels, "cohort": numbers, "res": labels, "desc": labels})


def written(run: dict[str, str], image: dict[str, str], suffix: str = "bold", extension: str = ".nii.gz") -> str:
    order = [name for name in io_spec()["run_entities"] if name in run]
    parts = [f"{key}-{value}" for key, value in short_names({name: run[name] for name in order}).items()]
    return "_".join([*parts, *(f"{key}-{value}" for key, value in image.items()), suffix]) + extension


@given(run_entities, image_entities)
def test_names_survive_a_round_trip(run, image):
    expected = {**run, **image, "suffix": "bold", "extension": ".nii.gz", "datatype": "func"}
    assert parse_name(written(run, image), "func") == expected


@given(run_entities, image_entities, st.sampled_from(["bold", "mask", "timeseries", "events", "boldref"]))
def test_names_are_read_as_pybids_reads_them(run, image, suffix):
    name = written(run, image, suffix)
    ours = {key: value for key, value in parse_name(name, "func").items() if key != "cohort"}
    theirs = parse_file_entities(f"/func/{name}", config=["bids", "derivatives"])
    # PyBIDS takes the subject from a folder sub-*, which it does not see here
    assert {key: value for key, value in ours.items() if key != "subject"} == {
        key: str(value) for key, value in theirs.items() if key != "subject"
    }


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_from-T1w_to-MNI152NLin6Asym_mode-image_xfm.h5",
        "sub-01_task-rest_from-scanner_to-T1w_mode-image_xfm.txt",
        "sub-01_ses-1_run-001_from-MNIInfant+2_to-T1w_mode-image_xfm.h5",
        "sub-01_task-rest_run-1_hemi-L_space-fsaverage5_bold.func.gii",
        "sub-01_task-rest_space-fsLR_den-91k_bold.dtseries.nii",
    ],
)
def test_transforms_and_surfaces_are_read_as_pybids_reads_them(name):
    theirs = parse_file_entities(f"/sub-01/func/{name}", config=["bids", "derivatives"])
    assert parse_name(name, "func") == {key: str(value) for key, value in theirs.items()}


@given(run_entities, numbers)
def test_padding_and_echo_and_magnitude_do_not_tell_runs_apart(run, number):
    run = {name: value for name, value in run.items() if name not in ("run", "echo", "part")}
    one = run_key({**run, "run": number, "echo": "2"})
    assert one == run_key({**run, "run": number.zfill(5), "part": "mag"})
    assert one != run_key({**run, "run": number, "part": "phase"})
    assert one != run_key({**run, "run": str(int(number) + 1)})


@given(st.dictionaries(st.sampled_from(["task", "run", "space", "res"]), labels))
def test_a_file_matches_the_query_of_its_own_entities(entities):
    assert Query.of(entities).matches(entities)
    assert Query.of({name: [None, value] for name, value in entities.items()}).matches(entities)
    assert Query.of(dict.fromkeys(entities, "*")).matches(entities)
    assert Query.of(dict.fromkeys(entities)).matches({})
    for name in entities:
        assert not Query.of({name: None}).matches(entities)
        assert not Query.of({name: "*"}).matches({})


def test_numbers_match_whatever_their_padding():
    assert Query.of({"run": [1, "2"]}).matches({"run": "02"})
    assert Query.of({"res": "02"}).matches({"res": "2"})
    assert not Query.of({"task": "01"}).matches({"task": "1"})
    assert canonical("res", "native") == "native"
    assert canonical("run", "000") == canonical("run", "0") == "0"
    assert canonical("echo", "0" + "1" * 5000) == "1" * 5000  # more digits than Python takes for a number


def test_inheritance_is_by_entities():
    assert is_part_of({"task": "rest", "run": "1"}, {"task": "rest", "run": "01", "space": "T1w"})
    assert not is_part_of({"task": "rest", "echo": "1"}, {"task": "rest"})


@pytest.mark.parametrize(
    "entities, space",
    [
        ({}, "boldref"),
        ({"space": "scanner"}, "boldref"),
        ({"space": "T1w"}, "T1w"),
        ({"space": "MNI152NLin6Asym", "res": "2"}, "MNI152NLin6Asym"),
        ({"space": "MNIInfant", "cohort": "01"}, "MNIInfant:cohort-1"),
        ({"space": "MNIInfant+1"}, "MNIInfant:cohort-1"),
    ],
)
def test_space_of_an_image(entities, space):
    assert space_of(entities) == space
    assert normalised(space) == space


@pytest.mark.parametrize(
    "source, target, ends",
    [
        ("scanner", "T1w", ("boldref", "T1w")),  # 20.2 to 23.1
        ("T1w", "scanner", ("T1w", "boldref")),
        ("scanner", "boldref", ("orig", "boldref")),  # head motion, 22.1 to 23.1
        ("orig", "boldref", ("orig", "boldref")),  # head motion, from 23.2
        ("boldref", "T1w", ("boldref", "T1w")),
        ("boldref", "auto00000", None),  # to a field map
        ("T1w", "fsnative", None),
        ("MNIInfant+2", "T1w", ("MNIInfant:cohort-2", "T1w")),
        ("MNI152NLin2009cAsym", "T1w", ("MNI152NLin2009cAsym", "T1w")),
    ],
)
def test_ends_of_a_transform(source, target, ends):
    assert ends_of({"from": source, "to": target}) == ends


# --- filter files -----------------------------------------------------------------------------------------------


def filter_file(tmp_path, content):
    path = tmp_path / "filter.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_filters_of_other_queries_are_tolerated(tmp_path):
    path = filter_file(tmp_path, {"t1w": {"acquisition": "fail", "nonsense": 1}, "fmap": {}, "bold": {"acq": "a"}})
    assert read_filters(path) == {"bold": {"acquisition": "a"}}


def test_filters_are_on_top_of_the_queries(tmp_path):
    path = filter_file(tmp_path, {"bold": {"task": ["task-rest", "nback"], "run": None, "space": "*", "desc": "other"}})
    queries = make_queries("preproc", path)
    (bold,) = queries.wanted["bold"]
    entities = {"datatype": "func", "suffix": "bold", "extension": ".nii.gz", "desc": "other", "space": "T1w"}
    assert bold.matches({**entities, "task": "rest"})
    assert not bold.matches({**entities, "task": "rest", "run": "1"})
    assert not bold.matches({**entities, "task": "other"})
    assert queries.runs.matches({"task": "nback"}) and not queries.runs.matches({"task": "nback", "run": "1"})


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "is not a table of queries"),
        ('{"bold": ["rest"]}', "is not a table of queries"),
        ({"bold": {"taks": "rest"}}, "query 'bold' names 'taks', which is no BIDS entity"),
        ({"bold": {"run": True}}, "query 'bold' asks for run True"),
        ({"bold": {"run": []}}, r"query 'bold' asks for run \[\]"),
        ({"mask": {"desc": {"a": 1}}}, "query 'mask' asks for desc"),
    ],
)
def test_filter_files_that_make_no_sense(tmp_path, content, message):
    with pytest.raises(FilterUnusable, match=message) as caught:
        read_filters(filter_file(tmp_path, content))
    assert caught.value.exit_code == 2


def test_filter_file_that_is_not_there(tmp_path):
    with pytest.raises(FilterUnusable, match="cannot be read as JSON"):
        read_filters(tmp_path / "absent.json")
