"""Self-attention swap while sampling: the visual-only branch's keys and values inside the subject's mask."""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Callable, Iterable, Iterator, Literal, Mapping, Sequence

import torch
from comfy.ldm.modules.attention import CrossAttention, optimized_attention
from torch import Tensor

from ..attention.branch import Branch, Patches, Sides, branch_conditionings, with_branch
from ..attention.capture import Options, put_first
from ..attention.layers import AttentionLayer, attention_layers, blocks_by_place, place_in
from ..attention.masks import above, on_grid, otsu
from ..attention.record import Record, layer_grid
from ..attention.recording import recording_model
from ..attention.sides import Side
from ..attention.words import Words
from .masked_swap import ChosenPixels, masked_swap, pixels_inside

BOTH, CONDITIONAL = "both", "conditional"
MASK_SIDE = 16  # pixels of the longer side that the coarsest maps for a mask must have
_ROUNDING = 1e-6


def _fine_decoder(layer: AttentionLayer, all_layers: tuple[AttentionLayer, ...]) -> bool:
    coarsest = max(each.stride for each in all_layers if each.block[0] == "output")
    return layer.block[0] == "output" and layer.stride < coarsest


SWAP_LAYERS: Mapping[str, Callable[[AttentionLayer, tuple[AttentionLayer, ...]], bool]] = {
    "all": lambda layer, _: True,
    "decoder": lambda layer, _: layer.block[0] == "output",
    "fine decoder": _fine_decoder,
    "encoder": lambda layer, _: layer.block[0] == "input",
}


@dataclass(frozen=True)
class AttentionMask:
    """A subject mask from the picture's own cross-attention.

    words: whose attention it is. threshold: on the mean map, scaled from its smallest value, 0, to its largest, 1; 0
    for Otsu's. coarse: from the coarsest layers with at least MASK_SIDE pixels on the longer side; else from all.
    newest: from the maps of the newest step; else from their mean over all steps so far.
    """

    words: Words
    threshold: float
    coarse: bool
    newest: bool

    def layers(self, layers: tuple[AttentionLayer, ...], size: tuple[int, int]) -> tuple[AttentionLayer, ...]:
        """Those of the U-Net's layers whose maps are taken, for a latent of this height and width."""
        if not self.coarse:
            return layers
        large = [layer.stride for layer in layers if max(layer_grid(size, layer)) >= MASK_SIDE]
        stride = max(large) if large else min(layer.stride for layer in layers)
        return tuple(layer for layer in layers if layer.stride == stride)


@dataclass(frozen=True)
class SwapSettings:
    """How keys and values are swapped.

    layers: a name of SWAP_LAYERS. start, end: the swap acts in steps i with start ≤ i / steps < end, of those that are
    sampled. strength: 0 … 1, how much of the swapped attention is taken inside the mask. halves: BOTH, or CONDITIONAL
    to leave the negative side alone. mask: where; a tensor (1 or images, H, W) in 0..1, or None for everywhere.
    """

    layers: str
    start: float
    end: float
    strength: float
    halves: Literal["both", "conditional"]
    mask: AttentionMask | Tensor | None

    def steps(self, count: int) -> range:
        """Steps in which it acts, of `count`."""
        return range(*(math.ceil(part * count - _ROUNDING) for part in (self.start, self.end)))


def with_swap(model, branch: Branch, settings: SwapSettings, record: Record):
    """A clone of `model` that samples the branch beside the picture and swaps as `settings` say, filling `record`.

    The same model, with nothing added, if the settings swap nothing. Raises ValueError if it carries a branch already
    or has no cross-attention.
    """
    layers = attention_layers(model)
    swapped = [layer for layer in layers if SWAP_LAYERS[settings.layers](layer, layers)]
    if not swapped or not settings.strength:
        return model

    def start(guider, sigmas: Tensor, noise: Tensor) -> _SwapRun | None:
        return _SwapRun.begun(settings, swapped, record, guider, len(sigmas) - 1, noise)

    patched = with_branch(model, branch, start)
    if isinstance(settings.mask, AttentionMask):
        mask = settings.mask
        patched = recording_model(patched, record, layers, mask.words, chosen=lambda size: mask.layers(layers, size))
        put_first(patched, "attn2_patch")
    return patched


def _attending(attention: CrossAttention, features: Iterable[tuple[Tensor, Tensor]], options: Options
               ) -> Callable[[Tensor], Tensor]:
    """softmax(QK'ᵀ/√d)V', projected to the layer's output, for what queries Q are projected from; K' and V' are
    projected once from `features`, what the branch's conditionings gave for both."""
    context, value = (torch.cat(parts, dim=1) for parts in zip(*features))
    keys, values = attention.to_k(context), attention.to_v(value)

    def attend(queries: Tensor) -> Tensor:
        return attention.to_out(optimized_attention(
            attention.to_q(queries), keys, values, attention.heads, attn_precision=attention.attn_precision,
            transformer_options=options))

    return attend


def _was_due(conditionings: Iterable[Mapping[str, object]], options: Options) -> bool:
    """Whether the U-Net was to compute any of them at this noise level; their ranges of the schedule may exclude it."""
    sigma = float(options["sigmas"][0])
    return any(float(each.get("timestep_end", 0.0)) <= sigma <= float(each.get("timestep_start", math.inf))
               for each in conditionings)


def _of_latent(mask: Tensor, images: int, size: tuple[int, int]) -> Tensor:
    """A given mask (1 or images, H, W) at the height and width of the latent."""
    if len(mask) not in (1, images):
        raise ValueError(f"mask holds {len(mask)} pictures but {images} are sampled; give Self-Attention Swap one "
                         "mask, or one for each.")
    return on_grid(mask.cpu(), size)


class _SwapRun:
    """One sampling run: Reader of its branch. What it holds belongs to one evaluation of the model at a time."""

    def __init__(self, settings: SwapSettings, layers: Sequence[AttentionLayer], record: Record, steps: range,
                 places: Mapping[object, tuple[int, ...]]):
        self._settings, self._layers, self._record, self._steps, self._places = settings, layers, record, steps, places
        self._unet, self._blocks = None, {}
        self._mask: Tensor | None = None
        self._step: int | None = None
        self._sides: Mapping[int, Sides] = {}
        self._needed: set[Side] = set()
        self._chosen: dict[tuple, ChosenPixels | None] = {}
        self._features: dict[tuple[AttentionLayer, Side], dict[object, tuple[Tensor, Tensor]]] = {}
        self._queries: Tensor | None = None

    @classmethod
    def begun(cls, settings: SwapSettings, layers: Sequence[AttentionLayer], record: Record, guider, count: int,
              noise: Tensor) -> _SwapRun | None:
        """The run of a sampler that is about to start; None if it has no step in which anything is swapped."""
        steps = settings.steps(count)
        if not steps:
            return None
        if "multigpu_clones" in guider.model_options:
            raise ValueError("Self-Attention Swap cannot share a picture among several GPUs; take the MultiGPU node "
                             "out.")
        size = tuple(noise.shape[-2:])
        if not isinstance(settings.mask, AttentionMask):
            if settings.mask is not None:
                settings = replace(settings, mask=_of_latent(settings.mask, len(noise), size))
            record.begin(len(noise), size, count)
        elif not record.current.present:
            record.current.require_maps(record.made_by)
        places = {each["uuid"]: each["area"][2:]
                  for listed in guider.conds.values() for each in listed if "area" in each}
        return cls(settings, layers, record, steps, places)

    def patches(self, step: int, sides: Mapping[int, Sides], unet) -> tuple[Patches, Patches]:
        """See Reader."""
        if unet is not self._unet:
            self._unet, self._blocks = unet, blocks_by_place(unet, self._layers)
        self._sides, self._needed = sides, {each.branch for each in sides.values() if self._swaps(each)}
        self._features.clear()
        self._chosen.clear()
        self._mask = self._mask_of_step() if step in self._steps else None
        if self._mask is None or not self._mask.any():
            return Patches(), Patches()
        self._step = step
        return (Patches(last={"attn1_patch": self._keep_features}),
                Patches(first={"attn1_patch": self._keep_queries, "attn1_output_patch": self._swap},
                        last={"attn1_patch": self._take_patched_queries, "attn1_output_patch": self._swap}))

    def finished(self, picture: Tensor, branch: Tensor) -> None:
        """See Reader."""
        self._record.finish(picture)
        self._record.branch_latent = branch

    def _mask_of_step(self) -> Tensor | None:
        """(1 or images, H, W) on the CPU; None while no attention has been seen."""
        given, sampling = self._settings.mask, self._record.current
        if not isinstance(given, AttentionMask):
            return torch.ones(1, *sampling.size) if given is None else given
        newest = max(sampling.map_steps, default=None)
        maps = [found for word in sampling.words if (found := sampling.mean_map(word, newest)) is not None]
        if not maps:
            return None
        together = torch.stack(maps).sum(0)
        return (above(together, given.threshold) if given.threshold else otsu(together)).float()

    def _keep_features(self, n: Tensor, context: Tensor, value: Tensor, options: Options):
        """Last attn1_patch of the branch's call: what its keys K' and values V' are projected from."""
        layer = self._layer(options)
        if layer is not None:
            for sides, uuid, rows in self._chunks(context, options):
                if sides.branch in self._needed:
                    self._features.setdefault((layer, sides.branch), {}).setdefault(uuid, (context[rows], value[rows]))
        return n, context, value

    def _keep_queries(self, n: Tensor, context: Tensor, value: Tensor, options: Options):
        """First attn1_patch of the picture's call."""
        self._queries = n if self._layer(options) is not None else None
        return n, context, value

    def _take_patched_queries(self, n: Tensor, context: Tensor, value: Tensor, options: Options):
        """Last attn1_patch of the picture's call: other patches' queries count, unless they have merged pixels."""
        if self._queries is not None and n.shape == self._queries.shape:
            self._queries = n
        return n, context, value

    def _swap(self, out: Tensor, options: Options) -> Tensor:
        """First and last attn1_output_patch of the picture's call: acts once all pixels are in their places."""
        if self._queries is None or out.shape != self._queries.shape:
            return out
        queries, self._queries = self._queries, None
        if self._step is not None:
            self._record.add_mask(self._step, self._mask)
            self._step = None
        layer, block = self._blocks[place_in(options)]
        result, attends = out.clone(), {}
        for sides, uuid, rows in self._chunks(out, options):
            inside = self._inside(uuid, result[rows], options) if self._swaps(sides) else None
            if inside is None:
                continue
            features = self._features.get((layer, sides.branch))
            if not features and _was_due(branch_conditionings(options, sides.branch), options):
                raise ValueError("Self-Attention Swap misses its second picture in this step: a node that skips steps, "
                                 "such as EasyCache, has not let it be computed; put that node before Self-Attention "
                                 "Swap, or leave it out.")
            if features:
                if sides.branch not in attends:
                    attends[sides.branch] = _attending(block.attn1, features.values(), options)
                result[rows] = masked_swap(out[rows], queries[rows], attends[sides.branch], inside)
        return result

    def _inside(self, uuid, own: Tensor, options: Options) -> ChosenPixels | None:
        """Pixels of the mask in a conditioning's area, on the layer's grid, weighted by the strength."""
        grid, extent = (tuple(options[name][-2:]) for name in ("activations_shape", "original_shape"))
        top, left = self._places.get(uuid, (0, 0))
        key = (grid, extent, top, left)
        if key not in self._chosen:
            mask, size = self._mask, self._record.current.size
            if extent != size:
                mask = on_grid(mask, size)[:, top:top + extent[0], left:left + extent[1]]
            weights = self._settings.strength * on_grid(mask, grid).flatten(1).expand(len(own), -1)
            inside = pixels_inside(weights)
            self._chosen[key] = inside and inside.to(own)
        return self._chosen[key]

    def _swaps(self, sides: Sides) -> bool:
        return self._settings.halves == BOTH or sides.picture == "positive"

    def _layer(self, options: Options) -> AttentionLayer | None:
        return self._blocks.get(place_in(options), (None, None))[0]

    def _chunks(self, tensor: Tensor, options: Options) -> Iterator[tuple[Sides, object, slice]]:
        """(sides, id, rows) of each conditioning of this call."""
        count = len(tensor) // len(options["cond_or_uncond"])
        for i, (index, uuid) in enumerate(zip(options["cond_or_uncond"], options["uuids"], strict=True)):
            yield self._sides[index], uuid, slice(i * count, (i + 1) * count)
