"""Pictures of a subject as tests give them: made already, or found in a folder."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from personalize.nodes.training.images import Source, sources_of
from personalize.nodes.training.picture_files import folder_contents
from personalize.nodes.training.zoom import WHOLE, Framing


@dataclass(frozen=True)
class MadePicture:
    """A picture whose variants are there already; see `Picture`."""

    variants: Tensor
    masks: Tensor | None = None
    caption: str = ""
    name: str = ""
    NOT_IN_KEY = ("name",)

    @property
    def count(self) -> int:
        """V."""
        return len(self.variants)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.variants.shape[1:3]
        return height, width

    @property
    def masked(self) -> bool:
        """Whether masks were given."""
        return self.masks is not None

    def framing(self, variant: int) -> Framing:
        """Whole."""
        return WHOLE

    def photograph(self, longest_side: int) -> Tensor:
        """The first variant."""
        return self.variants[0]

    def made(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What was given, all at once."""
        yield self.variants, self.masks


def sources_from_files(folder: str, names: str, enough: int) -> list[Source]:
    """The pictures of a folder, or of the files named in it, with their captions."""
    return sources_of(folder_contents(folder, names), enough)


def picture_paths(folder: str, names: str) -> list[Path]:
    """Of the files that are used, in their order."""
    return list(folder_contents(folder, names).pictures)
