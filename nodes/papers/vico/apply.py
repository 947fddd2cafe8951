"""ViCo in a sampler: each call of the U-Net is preceded by one on the references, whose features it then reads."""
from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...attention.branch import in_branch
from ...attention.calls import Options, rows_told, step_of
from ...attention.devices import copies_by_device, device_of
from ...attention.maps import mean_over_layers, size_of
from ...attention.masks import on_grid
from ...attention.schedule import WHOLE_SCHEDULE, NoiseRange
from ...attention.sides import list_at, say_once, side_named, tell_sides
from ...attention.windows import images_of
from ...families.find import unet_of
from ...families.latents import latent_space
from ...families.layers import AttentionLayer
from ...recording.record import Record
from ...text.layout import Layout, parse_words
from ...text.pairs import in_pairs
from .blocks import ImageBlocks, patcher_of
from .maths import Variant, given_mask, object_mask
from .prompts import layout_of_conditioning, place_of
from .streams import CALL, Features, Reading, Seen, image_attention, look_at_references

KEY = "personalize.vico"
Halves = Literal["both", "shared", "conditional"]
OTHER_ROWS = ("Apply ViCo did not act in a part of this run: another node changes the number of pictures inside the "
              "model's call, as tiled samplers do, so that they cannot be told apart; take that node out.")
Source = tuple[UUID, str]  # a conditioning's id, which an area's counterparts share, and the name of its list


@dataclass(frozen=True, eq=False)
class Reference:
    """Pictures of one object.

    latents: (k, C, h, w) in the model's latent space; of equal size for all objects.
    word: what prompts call the object; "" for the word that the image blocks were trained with.
    masks: (k, H, W) in 0…1, 1 on the object, or None to find it in the attention to the word.
    """

    latents: Tensor
    words: str = ""
    masks: Tensor | None = None


@dataclass(frozen=True)
class Use:
    """How the references are used.

    variant: how the object masks are made and act. strength: 0…1. window: start and end as shares of the schedule.
    halves: which rows read which reference run. "both": all, each half with its own prompt, as released; "shared": all
        read the one with the positive prompt; "conditional": only the positive rows.
    reuse: steps that share one run on the references; 1 for a new one in each.
    """

    variant: Variant
    strength: float = 1.0
    window: tuple[float, float] = WHOLE_SCHEDULE
    halves: Halves = "both"
    reuse: int = 1


def with_references(model, blocks: ImageBlocks, trained: Sequence[str], references: Sequence[Reference], use: Use,
                    record: Record, prompt: Layout | None = None):
    """A clone of `model` that reads the references in every sampling run.

    trained: words that the blocks were trained with. prompt: the layout of the positive prompt, for conditionings that
    do not tell theirs. record: gets the maps and masks of the references.
    Raises ValueError if the model reads references already, or is made for inpainting.
    """
    _check(model)
    noise = NoiseRange.of(model, use.window)
    applied = Applied(blocks, tuple(trained), tuple(references), use, noise, record, prompt)
    patched = model.clone()
    tell_sides(patched)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, applied.sample)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, applied.diffusion_model)
    patched.set_additional_models(KEY, [patcher_of(blocks, model.load_device, model.offload_device)])
    return patched


def _check(model) -> None:
    if model.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY):
        raise ValueError("This MODEL already reads a reference; use one Apply ViCo, which takes several pictures at "
                         "image, and a second object at image_2.")
    takes, latents = unet_of(model).input_channels, latent_space(model).channels
    if takes != latents:
        raise ValueError(f"This model takes {takes} input channels, {latents} of them latents: it is made for "
                         "inpainting or editing, and a reference has no mask to paint in; use the base checkpoint.")


@dataclass(frozen=True, eq=False)
class _Prompt:
    """A conditioning as the U-Net gets it: context (n, T, C), y (n, A) or None; and each object's word with its
    positions, counted among its tokens, which may stand in pairs."""

    context: Tensor
    y: Tensor | None
    words: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    pairs: bool

    @property
    def shape(self) -> tuple[int, bool]:
        """What prompts that share a run of the U-Net have in common."""
        return self.context.shape[1], self.pairs


@dataclass(eq=False)
class _Run:
    """One sampling run. prompts: the first one is positive. blocks: of each GPU, where several share the picture.
    features: what was last seen with each prompt on each device, and when."""

    latents: Tensor
    prompts: Mapping[Source, _Prompt]
    blocks: Mapping[torch.device, ImageBlocks]
    features: dict[tuple[torch.device, Source], tuple[float, Mapping[AttentionLayer, Features]]] = field(
        default_factory=dict)

    @property
    def main(self) -> Source:
        return next(iter(self.prompts))


@dataclass(frozen=True, eq=False)
class Applied:
    """The wrappers that make a MODEL read references; arguments as for `with_references`.

    noise: noise levels at which it acts. hooked: the U-Net's layers go through transformer_options
    [CALL] already, as they do while the blocks are trained.
    """

    blocks: ImageBlocks
    trained: tuple[str, ...]
    references: tuple[Reference, ...]
    use: Use
    noise: NoiseRange
    record: Record
    prompt: Layout | None = None
    hooked: bool = False

    # ------------------------------------------------------------------------------------------ a sampling run
    def sample(self, executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        """SAMPLER_SAMPLE wrapper: finds the prompts' words and gives the run a place for its state."""
        run = self._run(guider, noise)
        self.record.begin(len(run.latents), size_of(run.latents), len(sigmas) - 1,
                          latent_space(guider.model_patcher).factor, of_references=True)
        options = extra_args["model_options"]
        options = {**options, "transformer_options": {**options["transformer_options"], KEY: run}}
        samples = executor(guider, sigmas, {**extra_args, "model_options": options}, callback, noise, *args, **kwargs)
        self.record.finish(guider.inner_model.process_latent_out(samples.to(torch.float32)))
        return samples

    def _run(self, guider, noise: Tensor) -> _Run:
        prepared: dict[Source, Mapping[str, Any]] = {}
        for name, listed in guider.conds.items():
            for options in listed:
                if "cross_attn" in options:
                    prepared.setdefault((options["uuid"], name), options)
        asked = {(options["uuid"], name) for name, listed in guider.original_conds.items()
                 if side_named(name) == "positive" for options in listed}
        prompts = {source: self._positive_prompt(options) for source, options in prepared.items() if source in asked}
        if not prompts:
            raise ValueError("Apply ViCo found no positive prompt in the sampler; connect a conditioning to positive.")
        first = {name: prompt for (_, name), prompt in reversed(prompts.items())}
        main = next(iter(prompts.values()))
        for source in [each for each in prepared if each not in prompts]:
            alike = first.get(source[1], main)
            prompts[source] = _prompt(prepared[source], alike.words, alike.positions)
        latents = torch.cat([reference.latents for reference in self.references]).to(noise.device)
        blocks = {device: model.get_additional_models_with_key(KEY)[0].model
                  for device, model in copies_by_device(guider).items()}
        return _Run(latents, prompts, blocks)

    def _positive_prompt(self, options: Mapping[str, Any]) -> _Prompt:
        layout = layout_of_conditioning(options, self.prompt)
        several = len(self.references) > 1
        places: list[tuple[str, tuple[int, ...]]] = []
        for i, reference in enumerate(self.references):
            trained = self.trained[i:i + 1] if several else self.trained
            named = {name for other in self.references for name in parse_words(other.words)}
            others = named | {*self.trained} - {*trained} | {*dict(places)}
            places.append(place_of(layout, reference.words, trained, others))
        return _prompt(options, *zip(*places))

    # ------------------------------------------------------------------------------------------ a call of the U-Net
    def diffusion_model(self, executor, x, timesteps, context, y=None, control=None, options={}, **kwargs):
        """DIFFUSION_MODEL wrapper."""
        run = options.get(KEY)
        sources = self._sources(run, x, options) if run is not None else ()
        if run is None or not any(sources):
            return executor(x, timesteps, context, y, control, options, **kwargs)
        unet = executor.class_obj
        with contextlib.nullcontext() if self.hooked else image_attention(unet, self.blocks.layers):
            features = self._features(run, list(dict.fromkeys(filter(None, sources))), executor.original, unet, x,
                                      timesteps, options)
            blocks = run.blocks.get(device_of(options), self.blocks)
            reading = self._reading(blocks, features, sources, x, options)
            return executor(x, timesteps, context, y, control, {**options, CALL: reading}, **kwargs)

    def _sources(self, run: _Run, x: Tensor, options: Options) -> tuple[Source | None, ...]:
        """For each conditioning of the call the prompt with which its rows see the references, or None."""
        if in_branch(options) or not self.noise.holds(float(options["sigmas"][0])):
            return ()
        if not rows_told(len(x), options):
            say_once(options, OTHER_ROWS)
            return ()
        found = []
        for index, uuid in zip(options["cond_or_uncond"], options["uuids"], strict=True):
            name = list_at(options, index)
            negative = side_named(name) == "negative"
            own = (uuid, name) if (uuid, name) in run.prompts else run.main
            found.append(own if not negative or self.use.halves == "both" else
                         run.main if self.use.halves == "shared" else None)
        return tuple(found)

    def _features(self, run: _Run, sources: Sequence[Source], forward, unet, x: Tensor, timesteps: Tensor,
                  options: Options) -> list[Mapping[AttentionLayer, Features]]:
        """What the image blocks read with each prompt; only what the run has not seen yet is computed."""
        step, sigma, device = step_of(options), float(options["sigmas"][0]), device_of(options) or x.device
        now = step // self.use.reuse if self.use.reuse > 1 else sigma
        new = [source for source in sources if run.features.get((device, source), (None,))[0] != now]
        for shape in dict.fromkeys(run.prompts[source].shape for source in new):
            together = [source for source in new if run.prompts[source].shape == shape]
            for source, seen in zip(together, self._look(run, together, forward, unet, x, timesteps, options)):
                run.features[device, source] = now, self._masked(run, source, seen, step)
        return [run.features[device, source][1] for source in sources]

    def _look(self, run: _Run, together: Sequence[Source], forward, unet, x: Tensor, timesteps: Tensor, options: Options
              ) -> list[dict[AttentionLayer, Seen]]:
        """All references with all of these prompts; Seen has their rows prompt by prompt.

        The U-Net gets no more pixels at once than it has for the picture, so that it needs no more memory.
        """
        prompts, pictures = [run.prompts[source] for source in together], len(run.latents)
        context = torch.cat([prompt.context for prompt in prompts]).to(x).repeat_interleave(pictures, 0)
        vectors = [prompt.y for prompt in prompts if prompt.y is not None]
        y = torch.cat(vectors).to(x).repeat_interleave(pictures, 0) if vectors else None
        latents = run.latents.to(x).repeat(len(context) // pictures, 1, 1, 1)
        groups = [prompt.positions for prompt in prompts for _ in range(len(prompt.context) * pictures)]
        at_once = max(1, x.numel() // latents[0].numel())

        def look(rows: slice) -> dict[AttentionLayer, Seen]:
            return look_at_references(forward, unet, self.blocks.layers, latents[rows],
                                      timesteps[:1].expand(len(latents[rows])), context[rows],
                                      None if y is None else y[rows], groups[rows], options, prompts[0].pairs)

        runs = [look(slice(first, first + at_once)) for first in range(0, len(latents), at_once)]
        sizes = [len(prompt.context) * pictures for prompt in prompts]
        parts = {layer: _parted([seen[layer] for seen in runs], sizes) for layer in self.blocks.layers}
        return [{layer: found[i] for layer, found in parts.items()} for i in range(len(prompts))]

    def _masked(self, run: _Run, source: Source, seen: Mapping[AttentionLayer, Seen], step: int
                ) -> dict[AttentionLayer, Features]:
        pictures, size = len(run.latents), size_of(run.latents)
        masks = {layer: self._masks(each.maps.unflatten(0, (-1, pictures)), layer.grid(size))
                 for layer, each in seen.items()}
        if source == run.main:
            self._keep(run, seen, masks, step)
        return {layer: Features(each.tokens.unflatten(0, (-1, pictures)).flatten(1, 2),
                                None if (mask := masks[layer]) is None else mask.flatten(1))
                for layer, each in seen.items()}

    def _masks(self, maps: Tensor, grid: tuple[int, int]) -> Tensor | None:
        """(n, k, P) from maps (n, k, P, objects): each picture's mask comes from the word of its own object."""
        variant, first, found = self.use.variant, 0, []
        for i, reference in enumerate(self.references):
            rows = slice(first, first + len(reference.latents))
            first = rows.stop
            if reference.masks is not None:
                covered = on_grid(reference.masks.to(maps), grid).flatten(1)
                found.append(given_mask(covered, variant).to(maps).expand(len(maps), -1, -1))
            else:
                mask = object_mask(maps[:, rows, :, i], variant)
                found.append(torch.ones_like(maps[:, rows, :, i]) if mask is None else mask.to(maps))
        if variant == "none" and all(reference.masks is None for reference in self.references):
            return None
        return torch.cat(found, 1)

    def _keep(self, run: _Run, seen: Mapping[AttentionLayer, Seen], masks: Mapping[AttentionLayer, Tensor | None],
              step: int) -> None:
        """Gives the record what the first positive prompt sees: maps of every word, and the masks' mean over layers."""
        words, pictures, size = run.prompts[run.main].words, len(run.latents), size_of(run.latents)
        drawn = []
        for layer, each in seen.items():
            grid = layer.grid(size)
            self.record.add_maps(step, layer, each.maps[:pictures].movedim(-1, 1).unflatten(-1, grid), words)
            if (mask := masks[layer]) is not None:
                drawn.append(mask[0].unflatten(-1, grid))
        if drawn:
            self.record.add_mask(step, mean_over_layers(drawn, max(map(size_of, drawn))))

    def _reading(self, blocks: ImageBlocks, features: Sequence[Mapping[AttentionLayer, Features]],
                 sources: Sequence[Source | None], x: Tensor, options: Options) -> Reading:
        """What the call's rows read: those of one conditioning follow each other, image by image."""
        distinct, images = list(dict.fromkeys(filter(None, sources))), images_of(len(x) // len(sources), options)
        counts = [len(next(iter(each.values())).tokens) for each in features]
        starts = dict(zip(distinct, (sum(counts[:i]) for i in range(len(counts)))))
        rows = [-1 if source is None else starts[source] + image % counts[distinct.index(source)]
                for source in sources for image in images]
        joined = {layer: _joined([each[layer] for each in features]) for layer in self.blocks.layers}
        whole = len(set(rows)) == 1 and sum(counts) == 1
        return Reading(blocks, joined, self.use.variant, None if whole else torch.tensor(rows), self.use.strength)


def _parted(runs: Sequence[Seen], sizes: list[int]) -> list[Seen]:
    """The rows of several runs one after the other, in parts of these sizes."""
    tokens, maps = torch.cat([seen.tokens for seen in runs]), torch.cat([seen.maps for seen in runs])
    return [Seen(*part) for part in zip(tokens.split(sizes), maps.split(sizes), strict=True)]


def _joined(parts: Sequence[Features]) -> Features:
    masks = [part.mask for part in parts if part.mask is not None]
    return Features(torch.cat([part.tokens for part in parts]), torch.cat(masks) if masks else None)


def _prompt(options: Mapping[str, Any], words: tuple[str, ...], positions: tuple[tuple[int, ...], ...]) -> _Prompt:
    """The conditioning with positions that it has; where it is shorter they move to its last token."""
    conds = options["model_conds"]
    context, y = conds["c_crossattn"].cond, conds.get("y")
    pairs = in_pairs(context)
    last = context.shape[1] // (2 if pairs else 1) - 1
    inside = tuple(tuple(min(position, last) for position in group) for group in positions)
    y = None if y is None else y.cond.expand(len(context), *y.cond.shape[1:])
    return _Prompt(context, y, words, inside, pairs)
