"""What tests of Self-Attention Swap share: a checkpoint whose swaps show, its prompts, and the same run by hand."""
from __future__ import annotations

import torch

from personalize.nodes.families.find import unet_of
from personalize.nodes.papers.harmonize.nodes_swap import PersonalizeSelfAttentionSwap
from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans
from personalize.nodes.training.seeds import generator

from .swap_by_hand import MaskByHand, kept_keys_and_values, swapping

TOLERANCE = 1e-5  # of the largest value: the sampler works in float32, the U-Net in float64
PROMPT, DOG = "a photo of a dog on the beach", 5
DEFAULTS = {"words": "dog", "start_percent": 0.2, "end_percent": 1.0, "strength": 1.0, "swap_layers": "all",
            "where": "subject", "mask_method": "threshold", "threshold": 0.3, "mask_layers": "coarse layers",
            "mask_steps": "all steps so far", "halves": "both", "noise": "shared", "guidance": "guided"}
GAIN = 100  # of the self-attentions' output. A random U-Net damps it and hardly hears its text: a swap would not show.


class World:
    """A tiny checkpoint with strong self-attention, its U-Net in float64, and the prompts of these tests encoded.

    side: of the latents that `sample` draws; 8 takes a third of the time of 16.
    """

    def __init__(self, checkpoint, side=16):
        self.side = side
        self.weak, self.clip, _ = checkpoint
        self.model = self.strong(self.weak)
        self.positive = self.encode(PROMPT, "dog")
        self.negative = self.encode("")
        self.visual = [[20 * tensor, options] for tensor, options in self.encode("fur and ears")]

    @staticmethod
    def strong(model):
        patched = model.clone()
        patched.add_patches({f"diffusion_model.{name}": ((GAIN - 1) * weight.float(),)
                             for name, weight in unet_of(model).denoiser.state_dict().items()
                             if name.endswith("attn1.to_out.0.weight")})
        return patched

    def encode(self, text, words=""):
        return PersonalizeEncodeWithSpans.execute(self.clip, text, words).args[0]

    def swap(self, model=None, positive=None, **changed):
        """(MODEL, record)."""
        inputs = {"negative": self.negative, **DEFAULTS, **changed}
        return PersonalizeSelfAttentionSwap.execute(model or self.model, positive or self.visual, **inputs).args

    @torch.inference_mode()
    def sample(self, model=None, positive=None, batch=1, steps=4, cfg=5.0, sampler="euler", side=None, seed=3,
               latent=None,
               negative=None, noise=None, **more):
        import comfy.sample

        side = side or self.side
        latent = torch.zeros(batch, 4, side, side) if latent is None else latent
        noise = comfy.sample.prepare_noise(latent, seed) if noise is None else noise
        return comfy.sample.sample(model or self.model, noise, steps, cfg, sampler, "normal", positive or self.positive,
                                   negative or self.negative, latent, disable_pbar=True, seed=seed, **more)


def close(found, expected):
    """Equal up to the order of sums."""
    return float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def far(found, expected):
    """Different beyond doubt."""
    return float((found - expected).abs().max()) > 10 * TOLERANCE * float(expected.abs().max())


class ByHand:
    """A naive run of the same swap: z' sampled first and alone, K' and V' of every step and layer kept, then z."""

    def __init__(self, world, how, model=None, positive=None, noise=None, first=1, layers=None, mask="attention",
                 guided=True, negative=1.0, branch_model=None):
        images, model = how.get("batch", 1), model or world.model
        unet, found = unet_of(world.model).denoiser, unet_of(world.model).layers
        alone = how if guided else {**how, "cfg": 1.0}
        self.branch, kept = kept_keys_and_values(
            unet, lambda: world.sample(branch_model or model, world.visual, noise=noise, **alone))
        if not guided:
            kept = [[(k.repeat(2, 1, 1), v.repeat(2, 1, 1)) for k, v in evaluation] for evaluation in kept]
        if isinstance(mask, str):
            finest = min(layer.stride for layer in found)  # 16 pixels for SD1.5, 8 for SDXL
            mask = MaskByHand([layer.order for layer in found if layer.stride == finest], [DOG], 0.3)
        layers = range(len(found)) if layers is None else layers
        with swapping(unet, kept, first, layers, images, mask, negative) as self.masks:
            self.picture = world.sample(model, positive, **how)


def own_noise(batch=1):
    """What the branch starts from with noise "own" and seed 3."""
    return torch.randn(batch, 4, 16, 16, generator=generator(3, "branch"))


def half_mask(side=16):
    """(1, side, side), 1 on the left half."""
    mask = torch.zeros(1, side, side)
    mask[:, :, : side // 2] = 1
    return mask
