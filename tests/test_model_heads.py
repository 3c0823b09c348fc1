"""Heads: one logit for two classes, unit vectors for retrieval, and the checkpoint's names."""

from __future__ import annotations

import pytest
import torch

from neurostorm_bids.model.config import Target
from neurostorm_bids.model.heads import EmbeddingHead, classification_head, head_for, pool
from neurostorm_bids.model.predict import predict


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_two_classes_have_one_logit_and_two_probabilities(version: str):
    target = Target("sex", "classification", head=version, classes=("F", "M"))
    head = head_for(target, 6, seeded())
    with torch.no_grad():
        head.head.head.weight.mul_(100)
        embedding = torch.randn(20, 6, generator=seeded(1))
        logits = head(embedding)
        probabilities = torch.from_numpy(predict(target, logits).probabilities)
    assert logits.shape == (20, 1)
    second = torch.sigmoid(logits.double()[:, 0])
    assert torch.allclose(probabilities, torch.stack([1 - second, second], dim=1))
    assert 0 < (probabilities.argmax(1) == 0).sum() < 20  # not always the first class


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_more_classes_have_a_logit_each(version: str):
    target = Target("state", "classification", head=version, classes=("a", "b", "c"))
    logits = head_for(target, 6, seeded())(torch.randn(4, 6))
    probabilities = predict(target, logits).probabilities
    assert logits.shape == (4, 3)
    torch.testing.assert_close(torch.from_numpy(probabilities), torch.softmax(logits.detach().double(), 1))


def test_two_layers_have_nothing_between_them():
    head = classification_head(6, 3, "v2").head
    x = torch.randn(5, 6)
    weight = head.head.weight @ head.hidden.weight
    bias = head.head.weight @ head.hidden.bias + head.head.bias
    torch.testing.assert_close(head(x), x @ weight.T + bias)
    assert head.hidden.out_features == 24


def test_retrieval_vectors_have_unit_length():
    head = head_for(Target("identity", "retrieval", head="emb"), 6, seeded())
    vectors = head(torch.randn(5, 6))
    assert vectors.shape == (5, 128)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    assert EmbeddingHead(6).fc1.bias is None


@pytest.mark.parametrize(
    ("target", "names"),
    [
        (Target("a", "regression"), {"head.head.weight": (1, 288), "head.head.bias": (1,)}),
        (
            Target("a", "classification", head="v2", classes=("x", "y")),
            {
                "head.hidden.weight": (1152, 288),
                "head.hidden.bias": (1152,),
                "head.head.weight": (1, 1152),
                "head.head.bias": (1,),
            },
        ),
        (
            Target("a", "classification", classes=tuple("abcdefg")),
            {"head.head.weight": (7, 288), "head.head.bias": (7,)},
        ),
    ],
)
def test_weights_have_the_names_of_the_checkpoints(target: Target, names: dict):
    assert {name: tuple(value.shape) for name, value in head_for(target, 288).state_dict().items()} == names


def test_fresh_heads_depend_on_the_generator_alone():
    target = Target("age", "regression")
    first, again = head_for(target, 6, seeded(1)).state_dict(), head_for(target, 6, seeded(1)).state_dict()
    assert torch.equal(first["head.head.weight"], again["head.head.weight"])
    assert not torch.equal(first["head.head.weight"], head_for(target, 6, seeded(2)).state_dict()["head.head.weight"])


def test_pooling_means_over_space_and_time():
    features = torch.randn(2, 3, 2, 1, 2, 5)
    torch.testing.assert_close(pool(features), features.mean((2, 3, 4, 5)))


@pytest.mark.parametrize(("count", "version", "message"), [(1, "v1", "1 class"), (2, "v3", "'v3'; expected v1 or v2")])
def test_impossible_heads_are_refused(count: int, version: str, message: str):
    with pytest.raises(ValueError, match=message):
        classification_head(4, count, version)
