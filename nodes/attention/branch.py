"""A second trajectory beside the sampler's own: same sampler, schedule and model, conditionings of its own."""
from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol
from uuid import UUID

import torch
from comfy import sampler_helpers, samplers
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..training.seeds import generator
from .calls import Options, step_of, with_entries
from .maps import size_of
from .second_run import Evaluation, SecondRun, answered_by, name_of
from .sides import IDS, Side, lists_by_id, lists_of, side_named, with_sides

KEY = "personalize.branch"
IN_BRANCH = "personalize_branch"
_GUIDANCE = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")

Conditioning = Sequence[Sequence[Any]]
Noise = Literal["shared", "own"]


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
    noise: Noise = "shared"


@dataclass(frozen=True)
class Patches:
    """Attention patches of one call, by kind such as "attn1_patch", that run before and after those of the MODEL."""

    first: Mapping[str, Callable] = field(default_factory=dict)
    last: Mapping[str, Callable] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One call of the U-Net for all conditionings of an evaluation; guiders and their patches may make several.

    number: of calls before it in the same evaluation. sides: what the indices in options["cond_or_uncond"] stand for.
    unet: what runs; a guider may have several. size: height and width of the latent in this call.
    """

    step: int
    number: int
    sides: Mapping[int, Sides]
    unet: Any
    size: tuple[int, int]


class Reader(Protocol):
    """What a technique does with the branch during one sampling run."""

    def branch_patches(self, call: Call) -> Patches:
        """Patches for a call of the branch; its whole evaluation comes before the picture's."""

    def picture_patches(self, call: Call | None) -> Patches:
        """Patches for a call of the picture; None for one that the sampler makes past the guider, where no branch can
        follow."""

    def finished(self, picture: Tensor, branch: Tensor) -> None:
        """The run has ended; both latents (images, C, H, W) as the sampler gives them."""


StartRun = Callable[[Any, Tensor, Tensor], "Reader | None"]


def with_branch(model, branch: Branch, start: StartRun):
    """A clone of `model` that carries the branch along in every sampling run.

    start: given guider, sigmas and noise (images, C, H, W) of a run, the Reader for it; None leaves the run as it is.

    Two runs of the same sampler take turns, the branch's one evaluation ahead. Each sees only its own rows, and random
    numbers and guidance functions are kept apart: the picture's is the run that it would be without the branch, and the
    branch's the run that its conditionings would have alone, with the same noise in every step. Raises ValueError if
    the model carries a branch already.
    """
    if model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        raise ValueError("This MODEL already carries a second branch, and only one can run beside a picture; take out "
                         "one of the two nodes that add it.")
    wrappers = _Wrappers(branch, start)
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, wrappers.prepare_sampling)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, wrappers.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, calc_cond_batch)
    return patched


@dataclass
class _Run:
    """One sampling run, as the options of both pictures reach it. conditionings: those of the branch, ready for use.
    ids: lists of the picture's and the branch's conditionings. shape: of the latent. calls: of the evaluation that
    runs; None between two."""

    reader: Reader
    conditionings: Mapping[Side, list[dict]]
    ids: Mapping[UUID, str]
    shape: torch.Size
    calls: int | None = None

    def evaluate(self, guider, *args, **kwargs) -> Tensor:
        """What the guider gives."""
        self.calls = 0
        try:
            return guider(*args, **kwargs)
        finally:
            self.calls = None

    def next_call(self, model, conds: Sequence[list[dict] | None], x: Tensor, timestep: Tensor, options: Options
                  ) -> Call | None:
        """The call that begins; None between two evaluations."""
        if self.calls is None:
            return None
        self.calls += 1
        sides = {index: side_named(name) for index, name in lists_of(conds, self.ids).items()}
        return Call(step_of({**options, "sigmas": timestep}), self.calls - 1,
                    {index: Sides(side, self.side_of_branch(side)) for index, side in sides.items()},
                    model.diffusion_model, size_of(x))

    def side_of_branch(self, side: Side) -> Side:
        """The branch's beside this one of the picture."""
        return side if side in self.conditionings else "positive"


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
        """Puts the second run inside the sampler, where no other wrapper sees it."""
        doubled = copy.copy(sampler)
        doubled.sample = functools.partial(self._sample, sampler)
        return executor(noise, latent_image, doubled, *args, **kwargs)

    def _sample(self, sampler, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
                disable_pbar=False):
        reader = self.start(guider, sigmas, noise)
        if reader is None:
            return sampler.sample(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        seed, options = extra_args.get("seed"), extra_args["model_options"]
        converted: dict[str, list[dict]] = {**self._converted()}
        ids = {**lists_by_id(guider.original_conds), **lists_by_id(converted)}
        conditionings = samplers.process_conds(guider.inner_model, noise, converted, noise.device, latent_image,
                                               denoise_mask, seed, latent_shapes=[noise.shape])
        run = _Run(reader, conditionings, ids, noise.shape)
        own_noise = self._noise(noise, seed)

        def sample_branch(ask) -> Tensor:
            return copy.copy(sampler).sample(
                answered_by(guider, lambda *args, **kwargs: ask(Evaluation(args, kwargs))), sigmas,
                {**extra_args, "model_options": _options_of_branch(options, run, guided="negative" in conditionings)},
                None, own_noise, latent_image, denoise_mask, True)

        second = SecondRun(guider, options, sample_branch, run.evaluate, name_of(sampler))
        try:
            samples = sampler.sample(
                answered_by(guider, second.evaluate_both), sigmas,
                {**extra_args, "model_options": with_entries(options, {KEY: run, IDS: ids})}, callback, noise,
                latent_image, denoise_mask, disable_pbar)
            beside = second.result()
        finally:
            second.close()
            sampler_helpers.cleanup_models(conditionings, [])
        reader.finished(*(guider.inner_model.process_latent_out(each.to(torch.float32)) for each in (samples, beside)))
        return samples

    def _converted(self) -> dict[Side, list[dict]]:
        sides: dict[Side, Conditioning | None] = {"positive": self.branch.positive, "negative": self.branch.negative}
        return {side: sampler_helpers.convert_cond(given) for side, given in sides.items() if given is not None}

    def _noise(self, noise: Tensor, seed: int | None) -> Tensor:
        if self.branch.noise == "shared" or not noise.any():
            return noise.clone()
        drawn = torch.randn(noise.shape, generator=generator(seed or 0, "branch"))
        return drawn.to(noise)


def calc_cond_batch(executor, model, conds, x, timestep, model_options):
    """CALC_COND_BATCH wrapper: the patches of the call, and the branch's own conditionings."""
    options = model_options.get("transformer_options", {})
    run: _Run | None = options.get(KEY)
    if run is None:
        return executor(model, conds, x, timestep, model_options)
    call = run.next_call(model, conds, x, timestep, options)
    if not in_branch(options):
        return executor(model, conds, x, timestep, _extended(model_options, run.reader.picture_patches(call)))
    if call is None:
        return executor(model, conds, x, timestep, model_options)
    first = {each.branch: index for index, each in reversed(list(call.sides.items()))}
    wanted = [_in_window(run.conditionings[call.sides[i].branch], run, model_options)
              if i in call.sides and first[call.sides[i].branch] == i else None for i in range(len(conds))]
    found = executor(model, wanted, x, timestep,
                     _extended(with_sides(model_options, wanted), run.reader.branch_patches(call)))
    # With the positive result on both sides, guidance leaves an unguided branch as it is.
    return [found[first[call.sides[i].branch] if i in call.sides else i] for i in range(len(conds))]


def _in_window(conditionings: list[dict], run: _Run, model_options: dict) -> list[dict]:
    """Their part for one of ComfyUI's context windows, if such a window runs."""
    window, handler = model_options["transformer_options"].get("context_window"), model_options.get("context_handler")
    if window is None or handler is None:
        return conditionings
    return handler.get_resized_cond(conditionings, torch.empty(run.shape, device="meta"), window)


def _options_of_branch(options: dict, run: _Run, guided: bool) -> dict:
    """Options of the branch's run. An unguided one has no guidance of the MODEL's patches either."""
    entries: dict[str, Any] = {KEY: run, IDS: run.ids, IN_BRANCH: True}
    cache = options["transformer_options"].get("easycache")  # of the nodes EasyCache and LazyCache: of one picture
    if cache is not None:
        entries["easycache"] = copy.deepcopy(cache)
    taken_out = () if guided else _GUIDANCE
    return with_entries({key: value for key, value in options.items() if key not in taken_out}, entries)


def _extended(model_options: dict, patches: Patches) -> dict:
    lists = dict(model_options["transformer_options"].get("patches", {}))
    for kind, patch in patches.first.items():
        lists[kind] = [patch, *lists.get(kind, [])]
    for kind, patch in patches.last.items():
        lists[kind] = [*lists.get(kind, []), patch]
    return with_entries(model_options, {"patches": lists})
