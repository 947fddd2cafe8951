"""A second run of a sampler in step with the first: before each evaluation of the model there, one of its own."""
from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from .turns import OwnMemory, TakingTurns


class Evaluation(NamedTuple):
    """What a sampler calls its guider with."""

    args: tuple
    kwargs: dict[str, Any]

    @property
    def sigma(self) -> float:
        """Noise level."""
        return _sigma(*self.args, **self.kwargs)


class SecondRun:
    """A run of a sampler that asks for its evaluations.

    guider: of the first run. options: model_options of the first run; what their functions remember is kept apart.
    sample: the second run; gets the function to ask for an Evaluation with, and returns the latent. evaluate: calls a
    guider, for either run, in the thread of the first. sampler: name for sentences.
    """

    def __init__(self, guider, options: dict, sample: Callable[[Callable[[Evaluation], Tensor]], Tensor],
                 evaluate: Callable[..., Tensor], sampler: str):
        device = guider.model_patcher.load_device
        self._first, self._second = guider, copy.copy(guider)
        self._evaluate, self._sampler = evaluate, sampler
        self._memory = OwnMemory(device, options)
        self._turns: TakingTurns[Evaluation, Tensor, Tensor] = TakingTurns(sample, device)

    def evaluate_both(self, *args, **kwargs) -> Tensor:
        """An evaluation of the second run, then one of the first with these arguments, which is returned. Raises
        ValueError if they are not at the same noise level."""
        with self._memory.recalled():
            asked = self._turns.question()
            if asked is None or not math.isclose(asked.sigma, _sigma(*args, **kwargs), rel_tol=1e-5, abs_tol=1e-8):
                raise ValueError(
                    f"The sampler {self._sampler} chooses its noise levels for each picture by itself, so a second "
                    "picture cannot keep in step with yours; choose another sampler, or take out the node that adds "
                    "the second picture.")
            denoised = self._evaluate(self._second, *asked.args, **asked.kwargs)
        result = self._evaluate(self._first, *args, **kwargs)
        with self._memory.recalled():
            self._turns.answer(denoised)
        return result

    def result(self) -> Tensor:
        """The second run's latent, once the first has ended."""
        with self._memory.recalled():
            while (asked := self._turns.question()) is not None:
                self._turns.answer(self._evaluate(self._second, *asked.args, **asked.kwargs))
        samples = self._turns.result
        assert samples is not None, "it has ended"
        return samples

    def close(self) -> None:
        """Ends it, wherever it is."""
        self._turns.close()


def answered_by(guider, answer: Callable[..., Tensor]):
    """A copy of the guider whose calls something else answers."""
    copied = copy.copy(guider)
    copied.__class__ = type(type(guider).__name__, (type(guider),), {
        "__call__": lambda self, *args, **kwargs: answer(*args, **kwargs)})
    return copied


def name_of(sampler) -> str:
    """As it stands in ComfyUI's menus."""
    name = getattr(getattr(sampler, "sampler_function", type(sampler)), "__name__", "of another pack")
    return name.removeprefix("sample_").removesuffix("_function")


def _sigma(x: Tensor, timestep: Tensor, *args, **kwargs) -> float:
    return float(timestep.flatten()[0])
