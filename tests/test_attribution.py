"""Maps of why: they add up, they lie where the signal is, and they go when the weights go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from neurostorm_bids.attribution import (
    Parcels,
    Question,
    Score,
    explain,
    permuted,
    questions_of,
    read_parcels,
    shares_of,
)
from neurostorm_bids.attribution import similarity as alike
from neurostorm_bids.attribution.baseline import baseline_of
from neurostorm_bids.attribution.maps import STEPS, ClipMap, MapTotal, integrated_gradients, occlusion
from neurostorm_bids.errors import AtlasUnusable, AttributionImpossible
from neurostorm_bids.model import Encoder, EncoderConfig
from neurostorm_bids.model.config import Target
from neurostorm_bids.model.heads import head_for, pool
from neurostorm_bids.space.grid import Grid

SIZE, FRAMES, BACKGROUND = 16, 8, -4.0
CONFIG = EncoderConfig(
    img_size=(SIZE, SIZE, SIZE, FRAMES),
    embed_dim=16,
    patch_size=(4, 4, 4, 1),
    depths=(1, 1),
    window_size=(2, 2, 2, 2),
    first_window_size=(2, 2, 2, 2),
)
AGE = Target("age", "regression", unit="year", mean=50.0, std=12.0)
SEX = Target("sex", "classification", classes=("F", "M"), temperature=2.0)
GROUP = Target("group", "classification", classes=("a", "b", "c"))
GRID = Grid.of((SIZE, SIZE, SIZE), np.diag([10.0, 10.0, 10.0, 1.0]) + np.eye(4, k=3) * -75, "MNI152NLin6Asym")
PLACES = np.indices((SIZE, SIZE, SIZE)).reshape(3, -1).T
BRAIN = (((PLACES - 7.5) ** 2).sum(axis=1) < 100).reshape(SIZE, SIZE, SIZE)
CENTRES = ((4, 4, 4), (11, 11, 11), (4, 11, 4), (11, 4, 11))
NETWORKS = np.stack([np.exp(-((PLACES - c) ** 2).sum(axis=1) / 4.5).reshape(SIZE, SIZE, SIZE) for c in CENTRES])
COURSE = np.sin(np.pi * np.arange(FRAMES) / FRAMES)


def clip_of(amplitudes, rng) -> torch.Tensor:
    """A brain whose networks are active with given amplitudes, in noise.  # (1, 1, X, Y, Z, T)"""
    signal = np.einsum("k,kxyz,t->xyzt", amplitudes, NETWORKS, COURSE)
    clip = 2 * signal + 0.3 * rng.standard_normal((SIZE, SIZE, SIZE, FRAMES))
    clip[~BRAIN] = BACKGROUND
    return torch.from_numpy(clip[None, None].astype(np.float32))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The tensors are small: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Probe:
    """A random encoder and a ridge regression of one network's amplitude on its embedding."""

    encoder: Encoder
    score: Score
    r2: float


@pytest.fixture(scope="module")
def probe() -> Probe:
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    encoder = Encoder(CONFIG, generator=generator).eval().requires_grad_(False)
    for embedding in encoder.pos_embeds:
        embedding.pos_embed.mul_(25)  # a random encoder that can tell places apart, as a trained one does
    amplitudes = rng.standard_normal((400, len(CENTRES)))
    clips = torch.cat([clip_of(row, rng) for row in amplitudes])
    with torch.no_grad():
        features = torch.cat([pool(encoder(part)) for part in clips.split(50)]).numpy()
    scaler = StandardScaler().fit(features)
    found = Ridge(1.0).fit(scaler.transform(features), amplitudes[:, 0])
    head = head_for(Target("network", "regression", mean=0.0, std=1.0), features.shape[1], generator)
    head.eval().requires_grad_(False)
    head.head.head.weight.copy_(torch.from_numpy((found.coef_ / scaler.scale_)[None]).float())
    question = Question(Target("network", "regression", mean=0.0, std=1.0), 0, 1.0, "natural units")
    r2 = found.score(scaler.transform(features), amplitudes[:, 0])
    return Probe(encoder, Score(encoder, head, question, "cpu"), r2)


def mean_map(score: Score, method: str = "integrated-gradients", baseline: str = "flat", n: int = 4) -> ClipMap:
    rng, total = np.random.default_rng(1), MapTotal()
    clips = [clip_of(np.full(len(CENTRES), 1.5), rng) for _ in range(n)]  # every network is active alike
    for found in explain(score, clips, method=method, background=BACKGROUND, baseline=baseline, parcels=parcels()):
        total.add(found)
    return total.mean()


def parcels() -> Parcels:
    """Each network where it is above 0.3, and the rest of the brain in slabs."""
    labels = np.where(BRAIN, 5 + PLACES[:, 0].reshape(BRAIN.shape) // 4, 0).astype(np.int32)
    for number, network in enumerate(NETWORKS, start=1):
        labels[(network > 0.3) & BRAIN] = number
    names = {int(label): f"p{label}" for label in np.unique(labels) if label}
    return Parcels(labels, names, {label: ("active" if label == 1 else "other") for label in names if label < 5})


@pytest.mark.parametrize("baseline", ["flat", "static"])
@pytest.mark.parametrize("method", ["integrated-gradients", "occlusion"])
def test_a_map_lies_in_the_network_that_the_head_was_trained_on(probe, method, baseline):
    found = mean_map(probe.score, method, baseline, n=1 if method == "occlusion" else 4)
    shares = {share.name: share for share in shares_of(found.values, BRAIN, parcels(), GRID)}
    assert probe.r2 > 0.5
    assert shares["active"].enrichment >= 3, shares["active"]


@pytest.mark.parametrize("method", ["integrated-gradients", "occlusion"])
def test_sums_tell_the_network_from_others_that_are_as_active(probe, method):
    def sums(score: Score) -> list[float]:
        found = mean_map(score, method, n=1 if method == "occlusion" else 4)
        rows = shares_of(found.values, BRAIN, parcels(), GRID)
        return [row.attribution for row in rows if row.name in ("p1", "p2", "p3", "p4")]

    own, *others = sums(probe.score)
    assert own > 0.5  # of an amplitude of 1.5, which the regression explains in part
    assert own >= 2 * max(map(abs, others))
    own, *others = sums(permuted(probe.score, seed=1))
    assert abs(own) < max(map(abs, others))


@pytest.mark.parametrize("baseline", ["flat", "static"])
def test_integrated_gradients_add_up_to_the_difference_of_the_outputs(probe, baseline):
    clip = clip_of([1.0, -0.5, 0.3, 2.0], np.random.default_rng(3))
    other = baseline_of(clip, BACKGROUND, baseline)
    found = integrated_gradients(probe.score, clip, other)
    with torch.no_grad():
        difference = float(probe.score(clip) - probe.score(other))
    assert found.difference == pytest.approx(difference, rel=1e-5)
    assert abs(found.values.sum() - difference) <= 0.02 * abs(difference)
    assert not found.values[~BRAIN].any()


class Crooked(Score):
    """A steep sigmoid of the mean."""

    def __call__(self, clips):
        return torch.sigmoid(40 * (clips.flatten(1).mean(1) - 0.5))


class Linear(Score):
    """Voxels weighted by their number."""

    def __call__(self, clips):
        return (torch.arange(64.0).reshape(1, 1, 4, 4, 4, 1) * clips).sum(dim=(1, 2, 3, 4, 5))


def of_kind(kind: type[Score]) -> Score:
    return kind(torch.nn.Identity(), torch.nn.Identity(), Question(AGE, 0, 1.0, "year"), "cpu")


def test_more_steps_are_taken_where_the_output_is_crooked():
    found = integrated_gradients(of_kind(Crooked), torch.ones(1, 1, 2, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2, 2))
    assert found.steps > STEPS[0] and found.error < 0.005
    assert found.values == pytest.approx(np.full((2, 2, 2), 1 / 8), rel=0.01)


def test_occlusion_of_a_linear_output_is_exact():
    labels = np.repeat(np.arange(4, dtype=np.int32), 16).reshape(4, 4, 4)
    clip, parcels = torch.ones(1, 1, 4, 4, 4, 2), Parcels(labels, {1: "a", 2: "b", 3: "c"})
    found = occlusion(of_kind(Linear), clip, torch.zeros_like(clip), parcels)
    assert found.steps == 4 and found.error < 1e-6  # what lies in no parcel is hidden as one more
    sums = [float(found.values[labels == label].sum()) for label in range(4)]
    assert sums == pytest.approx([2 * sum(range(16 * i, 16 * i + 16)) for i in range(4)])


def test_the_map_of_a_model_with_permuted_weights_differs(probe):
    changed = permuted(probe.score, seed=1)
    before, after = mean_map(probe.score), mean_map(changed)
    assert abs(alike(before.values, after.values, BRAIN)) < 0.5
    assert alike(before.values, before.values, BRAIN) == pytest.approx(1)
    assert alike(before.values, 0 * before.values, BRAIN) == 0
    for kept, moved in zip(probe.encoder.parameters(), changed.encoder.parameters(), strict=True):
        assert torch.equal(kept.flatten().sort().values, moved.flatten().sort().values)
    again = permuted(probe.score, 1).head
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), changed.head.parameters(), strict=True))


def test_baselines_leave_the_outside_alone():
    clip = clip_of([1, 1, 1, 1], np.random.default_rng(0))
    for kind in ("flat", "static"):
        other = baseline_of(clip, BACKGROUND, kind)
        assert torch.equal(other[:, :, ~BRAIN], clip[:, :, ~BRAIN])
    assert not baseline_of(clip, BACKGROUND, "flat")[:, :, BRAIN].any()
    voxel = baseline_of(clip, BACKGROUND, "static")[0, 0, 8, 8, 8]
    assert voxel.tolist() == pytest.approx([float(clip[0, 0, 8, 8, 8].mean())] * FRAMES)


# --- questions ----------------------------------------------------------------------------------------------------


class TwoHeads:
    """What `questions_of` reads of a model."""

    targets = (AGE, SEX, GROUP, Target("who", "retrieval", head="emb"))


def test_questions_are_outputs_in_the_units_of_the_prediction():
    found = {question.name: question for question in questions_of(TwoHeads())}
    assert list(found) == ["age", "sex", "group:a", "group:b", "group:c"]
    assert (found["age"].scale, found["age"].unit) == (12.0, "year")
    assert (found["sex"].chosen, found["sex"].scale, found["sex"].unit) == ("M", 0.5, "logit")
    assert found["group:b"].output == 1
    (female,) = questions_of(TwoHeads(), ["sex:F"])
    assert (female.output, female.scale) == (0, -0.5)
    unscaled = type("Unscaled", (), {"targets": (Target("age", "regression", unit="year"),)})()
    assert questions_of(unscaled)[0].unit == "standard units"
    assert questions_of(TwoHeads(), ["height"]) == ()


def test_an_unknown_class_is_told_with_those_there_are():
    with pytest.raises(AttributionImpossible, match=r"sex has no class 'X'.*sex:F or sex:M"):
        questions_of(TwoHeads(), ["sex:X"])


# --- parcels ------------------------------------------------------------------------------------------------------


def test_an_atlas_brings_names_and_networks(tmp_path):
    import nibabel as nib

    labels = np.zeros((SIZE, SIZE, SIZE), np.int16)
    labels[:4], labels[4:8], labels[8:12] = 3, 7, 9
    nib.save(nib.Nifti1Image(labels, np.array(GRID.affine)), tmp_path / "atlas.nii.gz")
    found = read_parcels(GRID, tmp_path / "atlas.nii.gz")
    assert (dict(found.names), dict(found.networks)) == ({3: "region-3", 7: "region-7", 9: "region-9"}, {})
    (tmp_path / "atlas.tsv").write_text("index\tname\n3\t7Networks_LH_Vis_1\n7\t7Networks_RH_Vis_2\n")
    found = read_parcels(GRID, tmp_path / "atlas.nii.gz")
    assert dict(found.networks) == {3: "Vis", 7: "Vis"} and found.names[9] == "region-9"
    rows = shares_of(np.ones(GRID.shape), BRAIN, found, GRID)
    assert [row.level for row in rows] == ["network", "parcel", "parcel", "parcel", "rest"]
    assert sum(row.mass for row in rows[1:]) == pytest.approx(1) and rows[0].enrichment == pytest.approx(1)
    for text in ("number\tname\n3\tx\n", "index\n3\n", "", "index\tname\nx\ty\n"):
        (tmp_path / "atlas.tsv").write_text(text)
        with pytest.raises(AtlasUnusable, match="columns index"):
            read_parcels(GRID, tmp_path / "atlas.nii.gz")


def test_a_map_of_no_difference_that_sums_to_something_is_warned_of():
    from neurostorm_bids.attribute import _completeness, _faults

    check = {"Method": "integrated-gradients", "SanityCheck": {"Differs": True}}
    assert list(_faults({**check, "Completeness": _completeness(0.0, 0.0, [0.0])})) == []
    nothing = _completeness(0.5, 0.0, [0.0])
    assert nothing["RelativeError"] is None and nothing["ErrorByMeanSize"] is None
    assert "error without bound" in "".join(_faults({**check, "Completeness": nothing}))
    assert "error of 3.0%" in "".join(_faults({**check, "Completeness": _completeness(1.03, 1.0, [1.0])}))


def test_parcels_without_an_atlas_are_compact_pieces():
    found = read_parcels(GRID)
    assert len(found) <= 100 and not found.networks and found.labels.shape == GRID.shape
