"""What training, previews and recording ask of a model, whatever it is built like."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

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


class Seen(Protocol):
    """What is called with an attention's queries and keys."""

    def __call__(self, layer: AttentionLayer, query: Tensor, key: Tensor, tokens: int, keys_of: KeysOf) -> None:
        """query: (rows, pixels, heads · d). key: (rows, n, heads · d), the first `tokens` of them the text's.
        keys_of: the layer's keys of another context (rows, T, C); raises ValueError where there are none."""


class Family(Protocol):
    """One model, seen through what its family has in common; made by `find.family_of`.

    preview: what suits its pictures.
    """

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

    def recomputable(self, except_for: AttentionLayer | None = None) -> Sequence[nn.Module]:
        """Blocks that gradient checkpointing may run again in the backward pass.

        except_for: the layer in which a pass stops early; its block is left out, for what it has computed is all that
        is needed of it.
        """

    def adaptable(self, which: Weights) -> Mapping[str, nn.Module]:
        """Modules with a matrix or kernel that an adapter may change, by their name in the MODEL."""
