"""What is explained: one output of one head, in the units in which it is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neurostorm_bids.errors import AttributionImpossible
from neurostorm_bids.model.config import Target

if TYPE_CHECKING:
    from torch import Tensor, nn

    from neurostorm_bids.model import Model


@dataclass(frozen=True)
class Question:
    """One output of one head.

    Parameters
    ----------
    target : Target
    output : int
        Which output of its head.
    scale : float
        Units of the prediction in one unit of the output.
    unit : str
        Of the attribution: the target's own, standard units where its scaler is unknown, or "logit".
    chosen : str or None
        Class of a classification.
    named : bool
        Whether the class belongs into names, which two maps of one target need.
    """

    target: Target
    output: int
    scale: float
    unit: str
    chosen: str | None = None
    named: bool = False

    @property
    def name(self) -> str:
        """As the user states it: ``age``, ``diagnosis:control``."""
        return f"{self.target.name}:{self.chosen}" if self.named else self.target.name


def questions_of(model: Model, names: Sequence[str] = ()) -> tuple[Question, ...]:
    """The outputs of a model that are asked for.

    Parameters
    ----------
    names : sequence of str
        ``TARGET`` or ``TARGET:CLASS`` each; none means every target. Two classes have one output, the log odds of the
        second; more classes have one each, and all of them are explained where none is named. Names of other models'
        targets are passed over.
    """
    known = {target.name: target for target in model.targets if target.kind != "retrieval"}
    wanted = names or tuple(known)
    found = [question for name in wanted for question in _asked(name, known)]
    return tuple(dict.fromkeys(found))


def _asked(name: str, known: dict[str, Target]) -> list[Question]:
    if name in known:
        return _outputs(known[name])
    target, _, chosen = name.rpartition(":")
    if target not in known:
        return []
    if chosen not in known[target].classes:
        raise AttributionImpossible(
            f"--attribution-targets {name}: {target} has no class {chosen!r}",
            expected=" or ".join(f"{target}:{label}" for label in known[target].classes) or f"{target} alone",
        )
    return [_of_class(known[target], known[target].classes.index(chosen), named=True)]


def _outputs(target: Target) -> list[Question]:
    if target.kind == "regression":
        scaled = target.std is not None and target.mean is not None
        unit = (target.unit or "natural units") if scaled else "standard units"
        return [Question(target, 0, float(target.std) if scaled and target.std is not None else 1.0, unit)]
    if len(target.classes) == 2:
        return [_of_class(target, 1, named=False)]
    return [_of_class(target, index, named=True) for index in range(len(target.classes))]


def _of_class(target: Target, index: int, *, named: bool) -> Question:
    one_output = len(target.classes) == 2
    sign = -1 if one_output and index == 0 else 1
    output = 0 if one_output else index
    return Question(target, output, sign / target.temperature, "logit", target.classes[index], named)


@dataclass(frozen=True, eq=False)
class Score:
    """What a question's output is for clips, differentiable.

    Parameters
    ----------
    encoder, head : Module
        In eval mode.
    question : Question
    device : str
        Where they are.
    batch_size : int
        Clips in one forward pass.
    """

    encoder: nn.Module
    head: nn.Module
    question: Question
    device: str
    batch_size: int = 1

    @classmethod
    def of(cls, model: Model, question: Question) -> Score:
        """The output of a loaded model."""
        branch = model.branch_of(question.target.name)
        return cls(branch.encoder, branch.heads[question.target.name], question, model.device, model.batch_size)

    def __call__(self, clips: Tensor) -> Tensor:
        """The output less its constant, in the units of the prediction.  # (n, ch, X, Y, Z, T) -> (n,)"""
        from neurostorm_bids.model.heads import pool

        outputs = self.head(pool(self.encoder(clips)))  # (n, outputs)
        return outputs[:, self.question.output] * self.question.scale
