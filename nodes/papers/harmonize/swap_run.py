"""One sampling run with a swap: keeps what the branch's self-attention had, and gives it to the picture's."""
from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...attention.branch import Call, Patches, Sides, branch_conditionings
from ...attention.calls import Options, rows_of_each
from ...attention.maps import size_of
from ...attention.masks import foreground, on_grid
from ...attention.schedule import NoiseRange
from ...attention.sides import Side
from ...attention.windows import Window, window_of
from ...families.attention import Attention
from ...families.find import unet_of
from ...families.latents import latent_space
from ...families.layers import AttentionLayer, place_in
from ...notice import notice
from ...recording.record import Record
from ...recording.sampling_recorder import extent_of
from .account import BRANCH_NOT_COMPUTED, CUT_INTO_TILES, OTHER_ROWS, PAST_THE_GUIDER, Account, no_step_between
from .masked_swap import ChosenPixels, masked_swap, pixels_inside
from .swap_settings import BOTH, AttentionMask, SwapSettings

_Place = tuple[int, "Window | None", AttentionLayer, Side]  # call's number in its evaluation, its window, branch's side


class SwapRun:
    """One sampling run: Reader of its branch. What it holds belongs to one call of the U-Net at a time; only features
    of the branch wait for the same call of the picture's evaluation."""

    def __init__(self, settings: SwapSettings, layers: Sequence[AttentionLayer], record: Record,
                 steps: Collection[int],
                 areas: Mapping[object, tuple[int, ...]]):
        self._settings, self._layers, self._record, self._steps, self._areas = settings, layers, record, steps, areas
        self._unet, self._attentions = None, {}
        self._call: Call  # since the first one
        self._mask: Tensor | None = None
        self._needed: set[Side] = set()
        self._chosen: dict[tuple, ChosenPixels | None] = {}
        self._features: dict[_Place, dict[object, tuple[Tensor, Tensor]]] = {}
        self._renewed: set[_Place] = set()
        self._queries: Tensor | None = None
        self._account = Account()

    @classmethod
    def begun(cls, settings: SwapSettings, layers: Sequence[AttentionLayer], record: Record, guider,
              sigmas: Tensor, noise: Tensor) -> SwapRun | None:
        """The run of a sampler that is about to start; None if it has no step in which anything is swapped."""
        steps, count = NoiseRange.of(guider.model_patcher, settings.window).steps(sigmas), len(sigmas) - 1
        if not steps:
            notice(no_step_between(count))
            return None
        if "multigpu_clones" in guider.model_options:
            raise ValueError("Self-Attention Swap cannot share a picture among several GPUs; take the MultiGPU node "
                             "out.")
        size = size_of(noise)
        if not isinstance(settings.mask, AttentionMask):
            if settings.mask is not None:
                settings = replace(settings, mask=_of_latent(settings.mask, len(noise), size))
            record.begin(len(noise), size, count, latent_space(guider.model_patcher).factor)
        elif not record.current.present:
            record.current.require_maps(record.made_by)
        areas = {each["uuid"]: each["area"] for listed in guider.conds.values() for each in listed if "area" in each}
        return cls(settings, layers, record, steps, areas)

    def branch_patches(self, call: Call) -> Patches:
        """See Reader."""
        self._begin(call)
        self._renewed.clear()
        if call.step not in self._steps:
            self._features.clear()
            return Patches()
        return Patches(last={"attn1_patch": self._keep_features})

    def picture_patches(self, call: Call | None) -> Patches:
        """See Reader."""
        if call is None:
            self._account.hindered(PAST_THE_GUIDER)
            return Patches()
        self._begin(call)
        self._chosen.clear()
        self._queries = None
        if call.step not in self._steps:
            return Patches()
        self._mask = self._mask_of_step()
        self._account.saw_mask(self._mask)
        if self._mask is None or not self._mask.any():
            return Patches()
        return Patches(first={"attn1_patch": self._keep_queries, "attn1_output_patch": self._swap},
                       last={"attn1_patch": self._take_patched_queries, "attn1_output_patch": self._swap})

    def finished(self, picture: Tensor, branch: Tensor) -> None:
        """See Reader."""
        self._record.finish(picture)
        self._record.branch_latent = branch
        self._account.say()

    def _begin(self, call: Call) -> None:
        if call.unet is not self._unet:
            self._unet, self._attentions = call.unet, unet_of(call.unet).self_attentions(self._layers)
        self._call = call
        self._needed = {each.branch for each in call.sides.values() if self._swaps(each)}

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
        return foreground(together, given.method, given.threshold).float()

    def _keep_features(self, n: Tensor, context: Tensor, value: Tensor, options: Options):
        """Last attn1_patch of the branch's call: what its keys K' and values V' are projected from."""
        layer = self._layer(options)
        if layer is not None:
            for sides, uuid, rows in self._chunks(context, options):
                if sides.branch in self._needed:
                    self._kept(layer, sides.branch, options).setdefault(uuid, (context[rows], value[rows]))
        return n, context, value

    def _kept(self, layer: AttentionLayer, side: Side, options: Options) -> dict[object, tuple[Tensor, Tensor]]:
        """Features of this call by conditioning; those of the evaluation before end with the first new ones."""
        place = self._call.number, window_of(options), layer, side
        if place not in self._renewed:
            self._renewed.add(place)
            self._features[place] = {}
        return self._features[place]

    def _keep_queries(self, n: Tensor, context: Tensor, value: Tensor, options: Options):
        """First attn1_patch of the picture's call."""
        self._queries = n if self._layer(options) is not None and rows_of_each(n, options) else None
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
        layer, attention = self._attentions[place_in(options)]
        result, attends = out.clone(), {}
        for sides, uuid, rows in self._chunks(out, options):
            inside = self._inside(uuid, result[rows], options) if self._swaps(sides) else None
            features = self._features_for(layer, sides.branch, options) if inside is not None else None
            if inside is None or not features:
                continue
            if sides.branch not in attends:
                attends[sides.branch] = _attending(attention, features.values(), options)
            result[rows] = masked_swap(out[rows], queries[rows], attends[sides.branch], inside)
            self._note_swap()
        return result

    def _features_for(self, layer: AttentionLayer, side: Side, options: Options
                      ) -> dict[object, tuple[Tensor, Tensor]] | None:
        """The branch's newest; nodes that skip steps skip those of each picture by themselves."""
        if not _was_due(branch_conditionings(options, side), options):
            return None
        features = self._features.get((self._call.number, window_of(options), layer, side))
        if features is None:
            self._account.hindered(BRANCH_NOT_COMPUTED)
        return features

    def _note_swap(self) -> None:
        self._account.swapped = True
        if self._mask is not None and self._call.step not in self._record.current.masks:
            self._record.add_mask(self._call.step, self._mask)

    def _inside(self, uuid, own: Tensor, options: Options) -> ChosenPixels | None:
        """Pixels of the mask in a conditioning's area, on the layer's grid, weighted by the strength."""
        grid, extent = (tuple(options[name][-2:]) for name in ("activations_shape", "original_shape"))
        height, width, top, left = extent_of(self._areas.get(uuid), self._call.size)
        if extent != (height, width):
            self._account.hindered(CUT_INTO_TILES)
            return None
        key = (grid, extent, top, left, window_of(options))
        if key not in self._chosen:
            mask = self._mask_of_call(options)[:, top:top + height, left:left + width]
            if len(mask) not in (1, len(own)):
                self._account.hindered(OTHER_ROWS)
                return None
            weights = self._settings.strength * on_grid(mask, grid).flatten(1).expand(len(own), -1)
            inside = pixels_inside(weights)
            self._chosen[key] = inside and inside.to(own)
        return self._chosen[key]

    def _mask_of_call(self, options: Options) -> Tensor:
        """Mask (1 or rows, h, w) of the part of the latent that the call works on, at its size there."""
        assert self._mask is not None  # else nothing is swapped
        window = window_of(options)
        mask = self._mask if window is None else window.cut(self._mask)
        return mask if size_of(mask) == self._call.size else on_grid(mask, self._call.size)

    def _swaps(self, sides: Sides) -> bool:
        return self._settings.halves == BOTH or sides.picture == "positive"

    def _layer(self, options: Options) -> AttentionLayer | None:
        return self._attentions.get(place_in(options), (None, None))[0]

    def _chunks(self, tensor: Tensor, options: Options) -> Iterator[tuple[Sides, object, slice]]:
        """(sides, id, rows) of each conditioning of this call."""
        indices, ids, count = options["cond_or_uncond"], options["uuids"], len(options["sigmas"])
        if len(ids) != len(indices) or len(tensor) != len(indices) * count:
            self._account.hindered(OTHER_ROWS)
            return
        for i, (index, uuid) in enumerate(zip(indices, ids, strict=True)):
            if index in self._call.sides:
                yield self._call.sides[index], uuid, slice(i * count, (i + 1) * count)


def _attending(attention: Attention, features: Iterable[tuple[Tensor, Tensor]], options: Options
               ) -> Callable[[Tensor], Tensor]:
    """softmax(QK'ᵀ/√d)V', projected to the layer's output, for what queries Q are projected from; K' and V' are
    projected once from `features`, what the branch's conditionings gave for both."""
    context, value = (torch.cat(parts, dim=1) for parts in zip(*features))
    keys, values = attention.keys(context), attention.values(value)

    def attend(queries: Tensor) -> Tensor:
        return attention.output(attention.attend(attention.queries(queries), keys, values, options))

    return attend


def _was_due(conditionings: Iterable[Mapping[str, Any]], options: Options) -> bool:
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
