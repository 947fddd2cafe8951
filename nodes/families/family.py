"""What training, previews and recording ask of a model, whatever it is built like."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from .layers import AttentionLayer

Weights = Literal["attention", "text keys and values", "all"]


@dataclass(frozen=True)
class PreviewDefaults:
    """How a picture is drawn while training. guidance: 1 for none."""

    sampler: str
    scheduler: str
    steps: int
    guidance: float


KeysOf = Callable[[Tensor], Tensor]


class Projected(NamedTuple):
    """What a layer attends by.

    query: (rows, pixels, heads · d). key: (rows, n, heads · d), the first `tokens` of them the text's.
    """

    query: Tensor
    key: Tensor
    tokens: int


class Seen(Protocol):
    """What is called with an attention's queries and keys while training."""

    def __call__(self, layer: AttentionLayer, projected: Projected, keys_of: KeysOf) -> None:
        """keys_of: the layer's keys of another context (rows, T, C), which are not told of again; raises ValueError
        where there are none."""


@dataclass(frozen=True, eq=False)
class Attending:
    """A layer that attends in a call that a sampler makes.

    options: transformer_options of the call.
    size: height and width of the latent that the call works on. grid: those of the layer's queries.
    rows: rows of the call.
    project: queries and keys of some of the rows. Where keys are projected from a context of the text alone, they are
        those of what its second argument makes of the context (rows, T, C).
    """

    layer: AttentionLayer
    options: Mapping[str, Any]
    size: tuple[int, int]
    grid: tuple[int, int]
    rows: int
    project: Callable[[slice, Callable[[Tensor], Tensor]], Projected]


Watcher = Callable[[Attending], None]


class Family(Protocol):
    """One model, seen through what its family has in common; made by `find.family_of`.

    models: what its models are called, for messages.
    preview: what suits its pictures.
    """

    models: str
    preview: PreviewDefaults

    @property
    def denoiser(self) -> nn.Module:
        """The network itself, ComfyUI's "diffusion_model"."""

    @property
    def layers(self) -> tuple[AttentionLayer, ...]:
        """Where it attends to the text, in execution order."""

    @property
    def text_width(self) -> int:
        """Width of the text encodings that it takes."""

    @property
    def input_channels(self) -> int:
        """Channels of what it takes; more than a latent has where it is made for inpainting or editing."""

    def differentiable(self) -> AbstractContextManager[None]:
        """While the context is open a gradient goes through the network to the text."""

    def watch(self, layers: Sequence[AttentionLayer], seen: Seen) -> AbstractContextManager[None]:
        """While the context is open `seen` is called whenever one of the layers attends, with what it attends by; what
        the network computes stays the same, and a gradient goes through."""

    def watch_sampling(self, model, layers: Sequence[AttentionLayer], watcher: Watcher) -> None:
        """Lets `watcher` see whenever one of the layers attends in a run of `model`, the caller's own clone of the
        MODEL that the family is of; what the network computes stays the same, bit for bit.

        Attention that another node has rearranged, so that its rows are not the picture's pixels, is not seen.
        """

    def recomputable(self, except_for: AttentionLayer | None = None) -> Sequence[nn.Module]:
        """Blocks that gradient checkpointing may run again in the backward pass.

        except_for: the layer in which a pass stops early; its block is left out, for what it has computed is all that
        is needed of it.
        """

    def adaptable(self, which: Weights) -> Mapping[str, nn.Module]:
        """Modules with a matrix or kernel that an adapter may change, by their name in the MODEL."""
