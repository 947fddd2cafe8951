"""ViCo in a sampler: each call of the U-Net is preceded by one on the references, whose features it then reads."""
from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...attention.branch import in_branch
from ...attention.calls import Options, rows_told, step_of, with_entries
from ...attention.devices import copies_by_device, device_of
from ...attention.maps import mean_over_layers, size_of
from ...attention.schedule import NoiseRange
from ...attention.sides import list_at, say_once, side_named, tell_sides
from ...attention.windows import images_of
from ...families.find import unet_of
from ...families.latents import latent_space
from ...families.layers import AttentionLayer
from ...recording.record import Record
from ...text.layout import Layout
from .blocks import ImageBlocks, patcher_of
from .references import Reference, Use, object_masks
from .sampling_run import LayerFeatures, SampledPrompt, SamplingRun, Source, sampled_prompts
from .streams import CALL, Features, Reading, Seen, image_attention, look_at_references

KEY = "personalize.vico"
OTHER_ROWS = ("Apply ViCo did not act in a part of this run: another node changes the number of pictures inside the "
              "model's call, as tiled samplers do, so that they cannot be told apart; take that node out.")


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

    def sample(self, executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        """SAMPLER_SAMPLE wrapper: finds the prompts' words and gives the run a place for its state."""
        run = self._begin(guider, noise)
        self.record.begin(len(run.latents), size_of(run.latents), len(sigmas) - 1,
                          latent_space(guider.model_patcher).factor, of_references=True)
        options = with_entries(extra_args["model_options"], {KEY: run})
        samples = executor(guider, sigmas, {**extra_args, "model_options": options}, callback, noise, *args, **kwargs)
        self.record.finish(guider.inner_model.process_latent_out(samples.to(torch.float32)))
        return samples

    def _begin(self, guider, noise: Tensor) -> SamplingRun:
        prompts = sampled_prompts(guider, self.references, self.trained, self.prompt)
        latents = torch.cat([reference.latents for reference in self.references]).to(noise.device)
        blocks = {device: model.get_additional_models_with_key(KEY)[0].model
                  for device, model in copies_by_device(guider).items()}
        return SamplingRun(latents, prompts, blocks)

    def diffusion_model(self, executor, x, timesteps, context, y=None, control=None, options={}, **kwargs):
        """DIFFUSION_MODEL wrapper."""
        run = options.get(KEY)
        sources = self._sources(run, x, options) if run is not None else ()
        if run is None or not any(sources):
            return executor(x, timesteps, context, y, control, options, **kwargs)
        unet = executor.class_obj
        with contextlib.nullcontext() if self.hooked else image_attention(unet, self.blocks.layers):
            distinct = list(dict.fromkeys(filter(None, sources)))
            features = self._features(run, distinct, executor.original, unet, x, timesteps, options)
            blocks = run.blocks.get(device_of(options), self.blocks)
            reading = self._reading(blocks, features, sources, x, options)
            return executor(x, timesteps, context, y, control, {**options, CALL: reading}, **kwargs)

    def _sources(self, run: SamplingRun, x: Tensor, options: Options) -> tuple[Source | None, ...]:
        """For each conditioning of the call the prompt with which its rows see the references, or None."""
        if in_branch(options) or not self.noise.holds(float(options["sigmas"][0])):
            return ()
        if not rows_told(len(x), options):
            say_once(options, OTHER_ROWS)
            return ()
        return tuple(self._source(run, uuid, list_at(options, index))
                     for index, uuid in zip(options["cond_or_uncond"], options["uuids"], strict=True))

    def _source(self, run: SamplingRun, uuid, name: str) -> Source | None:
        """As `_sources`, for the conditioning with this id in the list of this name."""
        if side_named(name) == "negative" and self.use.halves == "conditional":
            return None
        if side_named(name) == "negative" and self.use.halves == "shared":
            return run.main
        return (uuid, name) if (uuid, name) in run.prompts else run.main

    def _features(self, run: SamplingRun, sources: Sequence[Source], forward, unet, x: Tensor, timesteps: Tensor,
                  options: Options) -> dict[Source, LayerFeatures]:
        """What the image blocks read with each prompt; only what the run has not seen yet is computed."""
        seen = run.features(device_of(options) or x.device, self._moment(options))
        new = [source for source in sources if source not in seen]
        for shape in dict.fromkeys(run.prompts[source].shape for source in new):
            together = [source for source in new if run.prompts[source].shape == shape]
            prompts = [run.prompts[source] for source in together]
            for source, found in zip(together, self._look(run, prompts, forward, unet, x, timesteps, options)):
                seen[source] = self._masked(run, source, found, step_of(options))
        return {source: seen[source] for source in sources}

    def _moment(self, options: Options) -> float:
        """Equal for calls that share one run on the references."""
        if self.use.reuse > 1:
            return step_of(options) // self.use.reuse
        return float(options["sigmas"][0])

    def _look(self, run: SamplingRun, prompts: Sequence[SampledPrompt], forward, unet, x: Tensor, timesteps: Tensor,
              options: Options) -> list[dict[AttentionLayer, Seen]]:
        """All references with all of these prompts; Seen has their rows prompt by prompt.

        The U-Net gets no more pixels at once than it has for the picture, so that it needs no more memory.
        """
        pictures = len(run.latents)
        context = torch.cat([prompt.context for prompt in prompts]).to(x).repeat_interleave(pictures, 0)
        vectors = [prompt.y for prompt in prompts if prompt.y is not None]
        y = torch.cat(vectors).to(x).repeat_interleave(pictures, 0) if vectors else None
        latents = run.latents.to(x).repeat(len(context) // pictures, 1, 1, 1)
        sizes = [len(prompt.context) * pictures for prompt in prompts]
        groups = [prompt.positions for prompt, size in zip(prompts, sizes) for _ in range(size)]
        at_once = max(1, x.numel() // latents[0].numel())

        def look(rows: slice) -> dict[AttentionLayer, Seen]:
            return look_at_references(forward, unet, self.blocks.layers, latents[rows],
                                      timesteps[:1].expand(len(latents[rows])), context[rows],
                                      None if y is None else y[rows], groups[rows], options, prompts[0].pairs)

        runs = [look(slice(first, first + at_once)) for first in range(0, len(latents), at_once)]
        parts = {layer: _parted([seen[layer] for seen in runs], sizes) for layer in self.blocks.layers}
        return [{layer: found[i] for layer, found in parts.items()} for i in range(len(prompts))]

    def _masked(self, run: SamplingRun, source: Source, seen: Mapping[AttentionLayer, Seen], step: int
                ) -> LayerFeatures:
        """What was seen of the k references with one prompt, and their masks, as rows of all their pixels."""
        pictures, size = len(run.latents), size_of(run.latents)
        masks = {layer: object_masks(self.references, each.maps.unflatten(0, (-1, pictures)), layer.grid(size),
                                     self.use.variant)
                 for layer, each in seen.items()}
        if source == run.main:
            self._record(run, seen, masks, step)
        features = {}
        for layer, each in seen.items():
            mask = masks[layer]
            tokens = each.tokens.unflatten(0, (-1, pictures)).flatten(1, 2)
            features[layer] = Features(tokens, None if mask is None else mask.flatten(1))
        return features

    def _record(self, run: SamplingRun, seen: Mapping[AttentionLayer, Seen],
                masks: Mapping[AttentionLayer, Tensor | None], step: int) -> None:
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

    def _reading(self, blocks: ImageBlocks, features: Mapping[Source, LayerFeatures],
                 sources: Sequence[Source | None], x: Tensor, options: Options) -> Reading:
        """What the call's rows read: those of one conditioning follow each other, image by image."""
        rows_of: dict[Source, range] = {}
        count = 0
        for source, found in features.items():
            tokens = next(iter(found.values())).tokens
            rows_of[source] = range(count, count + len(tokens))
            count += len(tokens)
        rows: list[int] = []
        for source in sources:
            for image in images_of(len(x) // len(sources), options):
                rows.append(-1 if source is None else rows_of[source][image % len(rows_of[source])])
        joined = {layer: _joined([found[layer] for found in features.values()]) for layer in self.blocks.layers}
        all_read_one = count == 1 and len(set(rows)) == 1
        return Reading(blocks, joined, self.use.variant, None if all_read_one else torch.tensor(rows),
                       self.use.strength)


def _parted(runs: Sequence[Seen], sizes: list[int]) -> list[Seen]:
    """The rows of several runs one after the other, in parts of these sizes."""
    tokens, maps = torch.cat([seen.tokens for seen in runs]), torch.cat([seen.maps for seen in runs])
    return [Seen(*part) for part in zip(tokens.split(sizes), maps.split(sizes), strict=True)]


def _joined(parts: Sequence[Features]) -> Features:
    masks = [part.mask for part in parts if part.mask is not None]
    return Features(torch.cat([part.tokens for part in parts]), torch.cat(masks) if masks else None)
