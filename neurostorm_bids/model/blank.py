"""Modules whose weights will be read: nothing is drawn for them, and what stays unread is NaN."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

DRAWS = (Tensor.uniform_, Tensor.normal_, init.uniform_, init.normal_, init.kaiming_uniform_)


class BlankWeights(TorchFunctionMode):
    """Within this context, whatever would fill a tensor with random numbers fills it with NaN.

    Loading a model builds its modules only to put read weights into them. Without draws that takes a third of the time
    and leaves torch's random state alone, and a weight that was forgotten could never pass for a number.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Torch's hook: one call of a function on tensors."""
        named = kwargs or {}
        if function in DRAWS:
            return (args[0] if args else named["tensor"]).detach().fill_(float("nan"))
        return function(*args, **named)
