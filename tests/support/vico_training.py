"""What trainings of image blocks share: their method, and the objective of a batch from both streams written out."""
from __future__ import annotations

from dataclasses import replace

import torch
from comfy.model_sampling import V_PREDICTION
from torch import Tensor

from personalize.nodes.families.find import unet_of
from personalize.nodes.papers.vico.parts import ImageAttentionPart, WithReferences
from personalize.nodes.papers.vico.terms import ReferenceAttentionLoss
from personalize.nodes.text.encode import encode
from personalize.nodes.text.layout import END
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.recipe import TemplateRecipe

from .trainings import subject
from .vico_by_hand import DualStream
from .vico_scene import MASKERS

WORD = "<my-dog>"
TEMPLATES = ("a photo of a {}", "{} on the very old wooden table", "two of my friends and one {} at night")
RECIPE = WithReferences(TemplateRecipe(TEMPLATES))
TWO = (subject(), subject(placeholder="<my-toy>", count=2))
WEIGHT = 0.3
CLOSE = 1e-5  # the U-Net in float64; what is left, 6e-7, are parameters, latents and the text encoder in float32


def method(variant="paper", **more):
    return {"terms": (DiffusionLoss(), ReferenceAttentionLoss(WEIGHT)), "recipe": RECIPE, "subjects": TWO,
            "parts": (EmbeddingPart(), ImageAttentionPart(variant=variant)), **more}


class ByHand:
    """The objective of one batch, from DualStream, with gradients of its own copies of all parameters.

    goal: given the maps (B, P) of the word, what they are drawn to in place of Eq. 6. unet: of other weights.
    """

    def __init__(self, trainer, batch, variant: str, masker=None, goal=None, unet=None):
        session = trainer.session
        vectors, blocks, *_ = trainer.parts
        self.vectors = {name: {key: copied(p) for key, p in rows.items()} for name, rows in vectors.parameters.items()}
        self.tensors = {name: copied(p) for name, p in blocks.blocks.named_tensors()}
        rows, latents = batch.rows["subject"], batch.latents["subject"]
        tokens = [trainer.objective.text.tokenizer(row.prompt) for row in rows]
        prompts = encode(session.clip, tokens, [self.vectors] * len(rows))
        y = None
        if prompts.pooled is not None:
            side = 8 * latents.noisy.shape[-1]
            y = session.model.model.encode_adm(pooled_output=prompts.pooled, width=side, height=side, device="cpu")
        positions = [tuple(tokens[i].layout.span(batch.concept(row).placeholder)) for i, row in enumerate(rows)]
        assert len(set(positions)) > 1, "prompts of one batch must differ in where the word is"
        sampling = session.noise.sampling
        stream = DualStream(unet or unet_of(session.model).denoiser, self.tensors, masker or MASKERS[variant],
                            variant == "released")
        references = batch.latents["reference"].clean[:, None]
        predicted = stream(sampling.calculate_input(latents.sigma, latents.noisy), references,
                           sampling.timestep(latents.sigma).float(), prompts.cond, y, [[where] for where in positions])
        self.diffusion = (predicted - wanted_output(sampling, latents)).square().mean()
        ends = [t.layout.of_kind(END)[0] for t in tokens]
        self.regularisation = WEIGHT * sum(reference_attention(maps, positions, ends, goal) for maps in stream.maps)
        (self.diffusion + self.regularisation).backward()


def copied(parameter: Tensor) -> Tensor:
    return parameter.detach().clone().requires_grad_()


def wanted_output(sampling, latents) -> Tensor:
    """What the U-Net should give: the noise, or for v-prediction the velocity α ε − σ x at α² + σ² = 1."""
    if not isinstance(sampling, V_PREDICTION):
        return latents.noise
    angle = latents.sigma.double().atan().view(-1, 1, 1, 1)
    return (angle.cos() * latents.noise - angle.sin() * latents.clean).float()


def reference_attention(maps: Tensor, positions, ends, goal) -> Tensor:
    """Eq. 6 row by row, the end's side held fixed; or the alignment of Fig. 9 to a goal."""
    words = [row[:, list(where)].sum(-1) for row, where in zip(maps, positions)]
    if goal is None:
        targets = [row[:, end].detach() / row[:, end].max().detach() for row, end in zip(maps, ends)]
    else:
        targets = goal(torch.stack(words).detach())
    return torch.stack([(word / word.max() - target).square().mean() for word, target in zip(words, targets)]).mean()


def close(found: Tensor, expected: Tensor, tolerance: float = CLOSE) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()), rtol=tolerance)


def same_gradients(trainer, hand: ByHand, tolerance: float = CLOSE) -> None:
    vectors, blocks, *_ = trainer.parts
    for name, p in blocks.blocks.named_tensors():
        close(p.grad, hand.tensors[name].grad, tolerance)
    for name, rows in vectors.parameters.items():
        for key, p in rows.items():
            close(p.grad, hand.vectors[name][key].grad, tolerance)


def with_masks(of):
    """The subject with a mask on each picture: its upper left part."""
    pictures = []
    for i, picture in enumerate(of.pictures):
        masks = torch.zeros(picture.variants.shape[:3])
        masks[:, :24 + 8 * i, :40] = 1
        pictures.append(replace(picture, masks=masks))
    return replace(of, pictures=tuple(pictures))
