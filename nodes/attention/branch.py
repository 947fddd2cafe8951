"""A second trajectory beside the sampler's own: same sampler, schedule and model, conditionings of its own."""
from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from typing import Any, Callable, Literal, Mapping, NamedTuple, Protocol, Sequence
from uuid import UUID

import torch
from comfy import sampler_helpers, samplers
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..training.seeds import generator
from .capture import Options, step_of
from .sides import IDS, Side, lists_by_id, lists_of, side_named, with_sides

KEY = "personalize.branch"
IN_BRANCH = "personalize_branch"

Conditioning = Sequence[Sequence[Any]]


class Sides(NamedTuple):
    """What one index of options["cond_or_uncond"] stands for: a side of the picture, and of the branch beside it.

    An unguided branch has its positive side beside both of the picture.
    """

    picture: Side
    branch: Side


def in_branch(options: Options) -> bool:
    """Whether the running call of the U-Net computes the branch and not the picture; for patches that treat both
    differently. options: transformer_options, or what an attention patch gets."""
    return bool(options.get(IN_BRANCH))


def branch_conditionings(options: Options, side: Side = "positive") -> Sequence[Mapping[str, Any]]:
    """The branch's conditionings as they are sampled, with their "uuid"; none if no branch runs."""
    run = options.get(KEY)
    return run.conditionings[side] if run is not None else ()


@dataclass(frozen=True)
class Branch:
    """What the second trajectory is.

    positive, negative: its conditionings; without negative it is unguided, which saves a row of the U-Net.
    noise: "shared" starts it from the picture's own noise, "own" from other noise.
    """

    positive: Conditioning
    negative: Conditioning | None
    noise: Literal["shared", "own"] = "shared"


@dataclass(frozen=True)
class Patches:
    """Attention patches of one call, by kind such as "attn1_patch", that run before and after those of the MODEL."""

    first: Mapping[str, Callable] = field(default_factory=dict)
    last: Mapping[str, Callable] = field(default_factory=dict)


class Reader(Protocol):
    """What a technique does with the branch during one sampling run."""

    def patches(self, step: int, sides: Mapping[int, Sides], unet) -> tuple[Patches, Patches]:
        """Patches for the branch's call and for the picture's, which follows it at once.

        sides: what the indices in options["cond_or_uncond"] stand for, in both calls. unet: what runs in both; a guider
        may have several.
        """

    def finished(self, picture: Tensor, branch: Tensor) -> None:
        """The run has ended; both latents (images, C, H, W) as the sampler gives them."""


StartRun = Callable[[Any, Tensor, Tensor], "Reader | None"]


def with_branch(model, branch: Branch, start: StartRun):
    """A clone of `model` that carries the branch along in every sampling run.

    start: given guider, sigmas and noise (images, C, H, W) of a run, the Reader for it; None leaves the run as it is.

    Only the sampler itself sees 2 · images rows: first those of the picture, then those of the branch. The U-Net gets
    them in two calls, the branch's first, so other patches, ControlNets and areas of the picture meet its own rows
    alone. Samplers that add noise draw it for all rows at once: the branch's follows the picture's and differs from it.
    Raises ValueError if the model carries a branch already.
    """
    if model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        raise ValueError("This MODEL already carries a second branch, and only one can run beside a picture; take out "
                         "one of the two nodes that add it.")
    wrappers = _Wrappers(branch, start)
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, wrappers.prepare_sampling)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, wrappers.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, wrappers.calc_cond_batch)
    return patched


@dataclass(frozen=True)
class _Run:
    """One sampling run, reached through the run's own options. conditionings: those of the branch, ready for use. ids:
    lists of the picture's and the branch's conditionings."""

    reader: Reader
    images: int
    conditionings: Mapping[Side, list[dict]]
    ids: Mapping[UUID, str]

    def sides(self, conds: Sequence[list[dict] | None]) -> dict[int, Sides]:
        """Sides of the picture's lists of conditionings by index."""
        sides = {index: side_named(name) for index, name in lists_of(conds, self.ids).items()}
        return {index: Sides(side, side if side in self.conditionings else "positive") for index, side in sides.items()}


@dataclass(frozen=True)
class _Wrappers:
    branch: Branch
    start: StartRun

    def prepare_sampling(self, executor, model, noise_shape, conds, *args, **kwargs):
        """Loads what the branch's conditionings need, such as a ControlNet of theirs."""
        ours = {f"branch {side}": converted for side, converted in self._converted().items()}
        real_model, _, models = executor(model, noise_shape, {**conds, **ours}, *args, **kwargs)
        return real_model, conds, models

    def outer_sample(self, executor, noise, latent_image, sampler, *args, **kwargs):
        """Puts the doubling inside the sampler, where no other wrapper sees it."""
        doubled = copy.copy(sampler)
        doubled.sample = functools.partial(self._sample, sampler)
        return executor(noise, latent_image, doubled, *args, **kwargs)

    def _sample(self, sampler, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
                disable_pbar=False):
        reader = self.start(guider, sigmas, noise)
        if reader is None:
            return sampler.sample(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        images, seed = len(noise), extra_args.get("seed")
        converted = self._converted()
        ids = {**lists_by_id(guider.original_conds), **lists_by_id(converted)}
        conditionings = samplers.process_conds(guider.inner_model, noise, converted, noise.device, latent_image,
                                               denoise_mask, seed, latent_shapes=[noise.shape])
        options = extra_args["model_options"]
        run = _Run(reader, images, conditionings, ids)
        options = {**options, "transformer_options": {**options["transformer_options"], KEY: run, IDS: ids}}
        try:
            samples = sampler.sample(
                guider, sigmas, {**extra_args, "model_options": options}, _first_rows(callback, images),
                torch.cat([noise, self._noise(noise, seed)]), _twice(latent_image, images),
                _twice(denoise_mask, images), disable_pbar)
        finally:
            sampler_helpers.cleanup_models(conditionings, [])
        reader.finished(*(guider.inner_model.process_latent_out(half.to(torch.float32)) for half in samples.chunk(2)))
        return samples[:images]

    def calc_cond_batch(self, executor, model, conds, x, timestep, model_options):
        """Runs the branch's rows with its own conditionings, then the picture's."""
        run = model_options.get("transformer_options", {}).get(KEY)
        if run is None or len(x) != 2 * run.images:
            return executor(model, conds, x, timestep, model_options)
        sides, options = run.sides(conds), model_options["transformer_options"]
        for_branch, for_picture = run.reader.patches(step_of({**options, "sigmas": timestep}), sides,
                                                      model.diffusion_model)
        first = {each.branch: index for index, each in reversed(sides.items())}
        wanted = [run.conditionings[sides[i].branch] if i in sides and first[sides[i].branch] == i else None
                  for i in range(len(conds))]
        branch = executor(model, wanted, x[run.images:], timestep[run.images:],
                          _extended(with_sides(model_options, wanted), for_branch, {IN_BRANCH: True}))
        picture = executor(model, conds, x[:run.images], timestep[:run.images], _extended(model_options, for_picture))
        # With the positive result on both sides, guidance leaves an unguided branch as it is.
        place = [first[sides[i].branch] if i in sides else i for i in range(len(conds))]
        return [torch.cat([mine, branch[index]]) for mine, index in zip(picture, place, strict=True)]

    def _converted(self) -> dict[Side, list[dict]]:
        sides = {"positive": self.branch.positive, "negative": self.branch.negative}
        return {side: sampler_helpers.convert_cond(given) for side, given in sides.items() if given is not None}

    def _noise(self, noise: Tensor, seed: int | None) -> Tensor:
        if self.branch.noise == "shared" or not noise.any():
            return noise
        drawn = torch.randn(noise.shape, generator=generator(seed or 0, "branch"))
        return drawn.to(noise)


def _extended(model_options: dict, patches: Patches, entries: Mapping[str, Any] = {}) -> dict:
    options = model_options["transformer_options"]
    lists = dict(options.get("patches", {}))
    for kind, patch in patches.first.items():
        lists[kind] = [patch, *lists.get(kind, [])]
    for kind, patch in patches.last.items():
        lists[kind] = [*lists.get(kind, []), patch]
    return {**model_options, "transformer_options": {**options, **entries, "patches": lists}}


def _twice(tensor: Tensor | None, images: int) -> Tensor | None:
    return tensor if tensor is None or len(tensor) != images else torch.cat([tensor, tensor])


def _first_rows(callback: Callable | None, images: int) -> Callable | None:
    if callback is None:
        return None
    return lambda step, denoised, x, total: callback(step, denoised[:images], x[:images], total)
