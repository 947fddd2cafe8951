"""Attention to the text recorded in one pass of training, with autograd and without touching what is computed."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..attention.softmax import chosen_keys, mean_over_pixels
from ..families.family import Family, KeysOf, Projected
from ..families.layers import AttentionLayer
from ..text.layered import text_of_layer

_depth: ContextVar[int] = ContextVar("personalize_recorder_depth", default=0)


@contextlib.contextmanager
def beside() -> Iterator[None]:
    """Marks runs of the denoiser that are no part of the recorded pass but made for it, such as a reference picture's.

    Recorders that were opened before see them only where a Wanted asks for them.
    """
    token = _depth.set(_depth.get() + 1)
    try:
        yield
    finally:
        _depth.reset(token)


@dataclass(frozen=True, eq=False)
class Wanted:
    """Attention to the text wanted of one pass, a softmax, mean over heads, float32.

    layers: layers to record.
    keep: "mean" gives (rows, T) per layer, the mean over pixels; "pixels" gives (rows, pixels, n) per layer.
    positions: for "pixels": the n token positions kept, per row or one tuple for all rows; None keeps all T.
    keys: context (rows or 1, T, C) whose keys replace the pass's own; its queries stay.
    by_layer: keys holds a context for each layer, `layers_beside`.
    beside: not of the pass itself but of the run that is made `beside` it.
    """

    layers: tuple[AttentionLayer, ...]
    keep: Literal["mean", "pixels"] = "mean"
    positions: tuple[tuple[int, ...], ...] | None = None
    keys: Tensor | None = None
    by_layer: bool = False
    beside: bool = False


class PassStopped(Exception):
    """Raised out of the denoiser once the maps of the last wanted layer are there: the rest need not be computed."""


class AttentionRecorder:
    """Records one run of the denoiser while the context is open; its outputs stay bit-identical.

    Under gradient checkpointing what runs a second time is not recorded again.

    until: stop the run by raising PassStopped inside this layer, right after its maps are computed.
    Raises ValueError if `until` would come before a wanted layer.
    """

    def __init__(self, family: Family, wanted: Sequence[Wanted], until: AttentionLayer | None = None):
        late = [] if until is None else [layer for want in wanted if not want.beside
                                         for layer in want.layers if layer.order > until.order]
        if until and late:
            raise ValueError(f"Attention layer {late[0].order} is wanted but the pass stops at layer {until.order}; "
                             "stop at the last wanted layer.")
        self._wanted, self._until, self._layers = tuple(wanted), until, len(family.layers)
        layers = dict.fromkeys([*(layer for want in wanted for layer in want.layers), *filter(None, [until])])
        self._watching = family.watch(tuple(layers), self._record)
        self._unrecorded = {(layer, beside) for layer in layers for beside in (False, True)}
        self._found: dict[tuple[int, AttentionLayer], Tensor] = {}

    def __enter__(self) -> AttentionRecorder:
        self._depth = _depth.get()
        self._watching.__enter__()
        return self

    def __exit__(self, *raised) -> None:
        self._watching.__exit__(*raised)

    @property
    def maps(self) -> list[tuple[Tensor, ...]]:
        """Per Wanted one tensor per layer, in its order. Raises RuntimeError if a layer has not run, ValueError if that
        is one of a run beside the pass: none was made, or it ended before."""
        missing = [(layer.order, want.beside) for i, want in enumerate(self._wanted) for layer in want.layers
                   if (i, layer) not in self._found]
        if any(beside for _, beside in missing):
            raise ValueError(f"The input loss holds one that looks at a reference picture in layers "
                             f"{', '.join(str(order) for order, _ in missing)}, but no part that is trained reads a "
                             "reference there; connect Train ViCo at trainable, with the same placement as the loss.")
        if missing:
            raise RuntimeError(f"The denoiser did not run its attention layers {[order for order, _ in missing]}; "
                               "nothing was recorded there.")
        return [tuple(self._found[i, layer] for layer in want.layers) for i, want in enumerate(self._wanted)]

    def _is_beside(self) -> bool | None:
        """Whether what runs now is beside the pass (True) or the pass itself (False); None beside what is beside."""
        return {0: False, 1: True}.get(_depth.get() - self._depth)

    def _record(self, layer: AttentionLayer, projected: Projected, keys_of: KeysOf) -> None:
        is_beside = self._is_beside()
        if is_beside is None or (layer, is_beside) not in self._unrecorded:  # gradient checkpointing runs it once more
            return
        self._unrecorded.remove((layer, is_beside))
        # Checkpointing counts the tensors that are saved; these are kept past it, so that a second run, with or without
        # this recorder, need not save them again.
        with torch.autograd.graph.saved_tensors_hooks(_unchanged, _unchanged):
            for i, want in enumerate(self._wanted):
                if layer in want.layers and want.beside == is_beside:
                    attending = projected
                    if want.keys is not None:
                        context = text_of_layer(want.keys, self._layers, layer.order) if want.by_layer else want.keys
                        others = keys_of(context.to(projected.query))
                        attending = Projected(projected.query, others, others.shape[1])
                    self._found[i, layer] = _attention(attending, layer.heads, want)
        if layer == self._until and not is_beside:
            raise PassStopped


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _attention(projected: Projected, heads: int, want: Wanted) -> Tensor:
    query, key, tokens = projected
    if want.keep == "mean":
        return mean_over_pixels(query, key, heads)[:, :tokens]
    positions = want.positions if want.positions is not None else (tuple(range(tokens)),)
    index = torch.tensor(positions, device=query.device)
    return chosen_keys(query, key, heads, index.expand(query.shape[0], -1))
