"""A model with random image blocks, a prompt with two learned words and references, sampled by the pack and by hand."""
from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping

import comfy.samplers
import torch
from torch import Tensor

from personalize.nodes.families.find import unet_of
from personalize.nodes.papers.vico.apply import with_references
from personalize.nodes.papers.vico.blocks import ImageBlocks, layers_at
from personalize.nodes.papers.vico.references import Reference, Use
from personalize.nodes.recording.record import Record
from personalize.nodes.text.concept import Concept
from personalize.nodes.text.encoders import text_encoders
from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans

from . import vico_by_hand
from .layouts import spans_in
from .sampling import encoded, noise_for, sample
from .vico_by_hand import DualStream, Masker

DOG, TOY = "<my-dog>", "<my-toy>"
PROMPT = f"a photo of a {DOG} beside one {TOY}"
STEPS, CFG = 2, 5.0
MASKERS: Mapping[str, Masker | None] = {"paper": vico_by_hand.otsu_mask, "released": vico_by_hand.released_mask,
                                        "none": None}


def latents(pictures: int = 1, seed: int = 7, side: int = 16) -> Tensor:
    return torch.randn(pictures, 4, side, side, generator=torch.Generator().manual_seed(seed))


def dog(**more) -> Reference:
    return Reference(latents(), DOG, **more)


def close(found: Tensor, expected: Tensor) -> None:
    """Equal but for latents and contexts in float32; the U-Net computes in float64."""
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


class Scene:
    """A checkpoint with random image blocks, a prompt with two learned words, and references."""

    def __init__(self, checkpoint, text: str = PROMPT, negative: str = "blurry", placement: str = "decoder"):
        self.model, self.clip, self.vae = checkpoint
        self.concepts = (_concept(DOG, self.clip, 1), _concept(TOY, self.clip, 2))
        self.blocks = ImageBlocks(self.model, layers_at(unet_of(self.model).layers, placement))
        self.blocks.draw(torch.Generator().manual_seed(3))
        self.tensors = {name: p.detach() for name, p in self.blocks.named_tensors()}
        self.positive = self.encode(text)
        self.negative = encoded(self.clip, negative)

    @torch.inference_mode()
    def encode(self, text: str):
        return PersonalizeEncodeWithSpans.execute(self.clip, text, "", self.concepts).args[0]

    def patched(self, references, use=Use("paper"), model=None, record=None, **more):
        blocks = copy.deepcopy(self.blocks)  # ComfyUI wants to see a loaded model go with its last patcher
        return with_references(model or self.model, blocks, (), references, use, record or Record("Apply ViCo"), **more)

    def sample(self, references, use=Use("paper"), **how) -> Tensor:
        return self.plain(self.patched(references, use), **how)

    def plain(self, model=None, **how) -> Tensor:
        return sample(model or self.model, self.positive, self.negative, **{"steps": STEPS, "cfg": CFG, **how})

    @torch.inference_mode()
    def by_hand(self, references, use=Use("paper"), masker: Masker | None = None, batch: int = 1, steps: int = STEPS,
                control: Callable[..., Mapping] | None = None, seen: list | None = None) -> Tensor:
        """Euler with guidance, every call of the denoiser by DualStream.

        masker: in place of the variant's own. control: residuals of a ControlNet on both sides, from the U-Net's
        input, timesteps and context. seen: gets the references' maps with the positive prompt, step by step.
        """
        sampling, base = self.model.get_model_object("model_sampling"), self.model.model
        latents = torch.cat([reference.latents for reference in references])
        spans = spans_in(self.positive[0][1])
        where = [spans[reference.words] for reference in references for _ in reference.latents]
        sides = [self.positive, self.negative]
        contexts = [side[0][0].expand(batch, -1, -1) for side in sides]
        ys = [None, None]
        if unet_of(self.model).denoiser.num_classes is not None:
            ys = [base.encode_adm(pooled_output=side[0][1]["pooled_output"], width=128, height=128,
                                  device="cpu").expand(batch, -1) for side in sides]
        sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
        x = sampling.noise_scaling(sigmas[0], noise_for(torch.zeros(batch, 4, 16, 16)), torch.zeros(batch, 4, 16, 16),
                                   True)
        for sigma, after in itertools.pairwise(sigmas):
            rows = sigma.expand(batch)
            given, timesteps = sampling.calculate_input(rows, x), sampling.timestep(rows).float()
            acts = use.window[0] <= 1 - float(timesteps[0]) / 999 <= use.window[1]
            denoised = []
            for side in (0, 1):
                seen_by = 0 if use.halves == "shared" else side
                reads = acts and (side == 0 or use.halves != "conditional")
                stream = DualStream(unet_of(self.model).denoiser, self.tensors, masker or MASKERS[use.variant],
                                    use.variant == "released", use.strength if reads else 0.0)
                residuals = control and control(given, timesteps, contexts[side])
                output = stream(given, latents.expand(batch, *latents.shape), timesteps, contexts[side], ys[side],
                                [where] * batch, contexts[seen_by], ys[seen_by], residuals)
                denoised.append(sampling.calculate_denoised(rows, output.float(), x))
                if side == 0 and seen is not None:
                    seen.append(stream.maps)
            guided = denoised[1] + CFG * (denoised[0] - denoised[1])
            x = x + (x - guided) / sigma * (after - sigma)
        return base.process_latent_out(x)


def _concept(word: str, clip, seed: int) -> Concept:
    draw = torch.Generator().manual_seed(seed)
    return Concept(word, "dog", "dog").with_vectors(
        {encoder.key: 0.1 * torch.randn(1, encoder.width, generator=draw) for encoder in text_encoders(clip)})
