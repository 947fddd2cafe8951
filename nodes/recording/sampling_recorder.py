"""A MODEL that records the attention to words while any sampler runs it; the picture stays the same, bit for bit."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor
from torch.nn import functional

from ..attention.calls import Options, rows_told, step_of, with_entries
from ..attention.maps import resized, size_of
from ..attention.schedule import WHOLE_SCHEDULE, NoiseRange
from ..attention.sides import tell_sides
from ..attention.softmax import chosen_keys
from ..attention.token_groups import TokenGroups
from ..attention.windows import Window, window_of
from ..attention.words import Watched, Words, unread_conditionings, watched_chunks, watched_conditionings
from ..families.family import Attending, Projected
from ..families.find import family_of
from ..families.latents import latent_space
from ..families.layers import AttentionLayer
from ..notice import notice
from .record import Record

Choice = Callable[["tuple[int, int]"], Sequence[AttentionLayer]]


def recording_model(model, record: Record, layers: Sequence[AttentionLayer], words: Words,
                    window: tuple[float, float] = WHOLE_SCHEDULE, chosen: Choice | None = None):
    """A clone of `model` that fills `record` in every sampling run.

    window: start and end of what is recorded as shares of the schedule, 0 the noisiest. chosen: given height and
    width of the run's latent, those of the layers that are recorded; None for all.
    """
    chosen = chosen or (lambda size: layers)
    recording = _Recording(record, words, NoiseRange.of(model, window), chosen, f"personalize.recording.{uuid4().hex}")
    patched = model.clone()
    tell_sides(patched)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "personalize.recording", recording.sample)
    family_of(model).watch_sampling(patched, layers, recording.see)
    return patched


@dataclass(frozen=True)
class _Run:
    """One sampling run: what it works on, and the layers that are recorded; reached through the run's own options."""

    conditionings: Mapping[UUID, Watched]
    images: int
    size: tuple[int, int]
    layers: frozenset[AttentionLayer]

    def of_call(self, options: Options) -> tuple[int, tuple[int, int]]:
        """Images, and height and width of the latent, that a call works on."""
        window = window_of(options)
        return (self.images, self.size) if window is None else (window.rows(self.images), window.size(self.size))


@dataclass(frozen=True)
class _Recording:
    record: Record
    words: Words
    noise: NoiseRange
    chosen: Choice
    key: str
    NOT_IN_KEY = ("key",)

    def sample(self, executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        """SAMPLER_SAMPLE wrapper."""
        size = size_of(noise)
        run = _Run(watched_conditionings(guider, self.words), noise.shape[0], size, frozenset(self.chosen(size)))
        begun = self.record.begin(run.images, run.size, len(sigmas) - 1, latent_space(guider.model_patcher).factor)
        begun.present = tuple(dict.fromkeys(name for each in run.conditionings.values() for name in each.names))
        begun.absent = tuple(name for name in self.words.names if name not in begun.present)
        begun.unread = unread_conditionings(guider, self.words)
        options = with_entries(extra_args["model_options"], {self.key: run})
        samples = executor(guider, sigmas, {**extra_args, "model_options": options}, callback, noise, *args, **kwargs)
        self.record.finish(guider.inner_model.process_latent_out(samples.to(torch.float32)))
        missing = begun.why_no_maps(self.record.made_by)
        if missing:
            notice(missing)
        return samples

    def see(self, attending: Attending) -> None:
        """Hands maps of one layer's attention to the record; a Watcher."""
        run: _Run | None = attending.options.get(self.key)
        rows = rows_told(attending.rows, attending.options)
        if run is None or attending.layer not in run.layers or not rows:
            return
        for index, watched in self._watched(run, attending).items():
            projected = attending.project(slice(index * rows, (index + 1) * rows), watched.groups.keys)
            if projected.tokens >= watched.groups.length:
                maps = _group_maps(projected, attending.layer.heads, watched.groups)
                self._keep(run, attending, watched, maps.unflatten(-1, attending.grid))

    def _watched(self, run: _Run, attending: Attending) -> Mapping[int, Watched]:
        """Conditionings to look at in this call, by their place in it."""
        options = attending.options
        if not self.noise.holds(float(options["sigmas"][0])):
            return {}
        images, size = run.of_call(options)
        if len(options["sigmas"]) != images:
            return {}
        return {index: each for index, each in watched_chunks(options, run.conditionings).items()
                if attending.size == extent_of(each.area, size)[:2]}

    def _keep(self, run: _Run, attending: Attending, watched: Watched, maps: Tensor) -> None:
        """Hands the maps (rows, n, h, w) of one conditioning to the record."""
        options, window = attending.options, window_of(attending.options)
        weight: float | Tensor = watched.strength
        if watched.area is not None or watched.mask is not None or window is not None and window.of_pixels:
            images, size = run.of_call(options)
            extent = extent_of(watched.area, size)
            weight = _weight(watched, extent, images, size, window).to(maps)
            maps = _placed(resized(maps, extent[:2]), extent, size)
        if window is not None:
            weight = torch.as_tensor(weight).to(maps).expand(1, *maps.shape[-2:]) if watched.mask is None else weight
            size = run.size if window.of_pixels else size_of(maps)
            weight, maps = (window.placed(torch.as_tensor(each), run.images, size) for each in (weight, maps))
        self.record.add_maps(step_of(options), attending.layer, maps, watched.names, weight)


def _group_maps(projected: Projected, heads: int, groups: TokenGroups) -> Tensor:
    """Attention to each of n groups, mean over heads, (rows, n, pixels) float32; a context's copies are added up."""
    query, key, text = projected
    tokens = [(group, position) for group, positions in enumerate(groups.in_copies(text)) for position in positions]
    index = torch.tensor([token for _, token in tokens], device=query.device).expand(query.shape[0], -1)
    of_group = torch.tensor([group for group, _ in tokens], device=query.device)
    found = chosen_keys(query, key, heads, index)
    summed = found.new_zeros(*found.shape[:2], len(groups.positions)).index_add_(-1, of_group, found)
    return summed.transpose(1, 2)


def extent_of(area: tuple[int, ...] | None, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Height, width, top and left of a conditioning's area, clipped as ComfyUI does."""
    if area is None:
        return *size, 0, 0
    height, width, top, left = area
    return min(height, size[0] - top), min(width, size[1] - left), top, left


def _weight(watched: Watched, extent: tuple[int, int, int, int], images: int, size: tuple[int, int],
            window: Window | None) -> Tensor:
    """(1 or images, H, W): how much the conditioning counts at each pixel of the call's latent."""
    weight = _placed(torch.full((1, *extent[:2]), watched.strength), extent, size)
    if watched.mask is None:
        return weight
    mask = (watched.mask if window is None else window.cut(watched.mask))[:images]
    return mask.repeat(images // len(mask), 1, 1) * weight.to(mask)


def _placed(maps: Tensor, extent: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """Maps (..., h, w) of an area in a picture of the whole latent (..., H, W), 0 elsewhere."""
    height, width, top, left = extent
    return functional.pad(maps, (left, size[1] - left - width, top, size[0] - top - height))
