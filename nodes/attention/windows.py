"""Windows: nodes that let the denoiser see a long batch or a large latent part by part."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_ROWS, _HEIGHT, _WIDTH = 0, 2, 3  # dimensions of a latent (images, C, H, W)


@dataclass(frozen=True)
class Window:
    """The part of a latent that one call works on: these indices of one of its dimensions."""

    dim: int
    indices: tuple[int, ...]

    @property
    def of_pixels(self) -> bool:
        """Whether it takes a part of each picture, and not a part of the batch."""
        return self.dim != _ROWS

    def rows(self, images: int) -> int:
        """Rows in the window of a latent of so many images."""
        return len(self.indices) if self.dim == _ROWS else images

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in the window of a latent of this size."""
        height, width = size
        if self.dim == _HEIGHT:
            height = len(self.indices)
        elif self.dim == _WIDTH:
            width = len(self.indices)
        return height, width

    def cut(self, maps: Tensor) -> Tensor:
        """The window's part of maps (1 or images, ..., H, W); one map for all images stays one."""
        axis = self._axis()
        if axis is None or axis == 0 and len(maps) == 1:
            return maps
        return maps.index_select(axis, self._index(maps))

    def placed(self, maps: Tensor, images: int, size: tuple[int, int]) -> Tensor:
        """Maps of the window (1 or rows, ..., h, w) where they belong in those of the latent, 0 elsewhere."""
        axis = self._axis()
        if axis is None:
            return maps
        rows = images if self.dim == _ROWS else len(maps)
        full = maps.new_zeros(rows, *maps.shape[1:-2], *size)
        if self.dim == _ROWS:
            maps = maps.expand(len(self.indices), *maps.shape[1:])
        return full.index_copy(axis, self._index(maps), maps)

    def _axis(self) -> int | None:
        return {_ROWS: 0, _HEIGHT: -2, _WIDTH: -1}.get(self.dim)

    def _index(self, maps: Tensor) -> Tensor:
        return maps.new_tensor(self.indices).long()


def images_of(rows: int, options: Mapping[str, Any]) -> Sequence[int]:
    """Which of the run's images the rows of each conditioning of this call are. options: as for `window_of`."""
    window = window_of(options)
    return range(rows) if window is None or window.dim != _ROWS else window.indices


def window_of(options: Mapping[str, Any]) -> Window | None:
    """The window of the running call, as ComfyUI's context windows and AnimateDiff-Evolved's tell it; None for the
    whole latent. options: transformer_options, or what an attention patch gets."""
    window = options.get("context_window")
    if window is not None:
        anchor = getattr(window, "causal_anchor_index", None)
        before = () if anchor is None or anchor < 0 else (anchor,)
        return Window(window.dim, (*before, *window.index_list))
    frames: Sequence[int] | None = (options.get("ad_params") or {}).get("sub_idxs")
    return None if frames is None else Window(_ROWS, tuple(frames))
