"""What trainings of DETEX share: pictures with masks, its parts, recipe and loss, and the loss of a batch in loops."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from personalize.nodes.families.find import unet_of
from personalize.nodes.papers.detex.parts import AttributesPart
from personalize.nodes.papers.detex.recipe import AttributeRecipe
from personalize.nodes.papers.detex.seeing import vision_fingerprint
from personalize.nodes.papers.detex.terms import AttributeAttentionLoss
from personalize.nodes.text.concept import Concept
from personalize.nodes.training.batch import Subject
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import KeyValuePart
from tiny import vision

from .attention_by_hand import naive_attention
from .pictures import MadePicture

WORD, KIND = "<my-dog>", "dog"
SIDE = 64


def masked_subject(pictures: int = 3, unmasked: int = 0, placeholder: str = WORD) -> Subject:
    """Random pictures, each with an ellipse of its own as mask; the last `unmasked` of them without."""
    draw = torch.Generator().manual_seed(len(placeholder))
    made = tuple(MadePicture(torch.rand(1, SIDE, SIDE, 3, generator=draw), None if i >= pictures - unmasked else
                             ellipse(20 + 6 * i, 24, 14, 20), name=f"picture {i + 1}") for i in range(pictures))
    return Subject(Concept(placeholder, KIND, "cat"), made)


def ellipse(row: float, column: float, height: float, width: float) -> Tensor:
    """(1, 64, 64) with soft edges."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    distance = ((y - row) / height) ** 2 + ((x - column) / width) ** 2
    return (2 - distance).clamp(0, 1)[None]


def method(mapped: bool = True, clip_vision=None, rate: float = 1e-3, filtered: float = 0.5, **loss):
    """Parts, losses, recipe and subjects, as Train DETEX and Attribute Attention Loss chain them."""
    seen = clip_vision or (vision.load() if mapped else None)
    parts = (EmbeddingPart(rate), KeyValuePart(rate), AttributesPart(seen, vision_fingerprint(seen), mapped, lr=rate))
    return {"parts": parts, "terms": (DiffusionLoss(), AttributeAttentionLoss(**loss)),
            "recipe": AttributeRecipe(filtered=filtered), "subjects": (masked_subject(),)}


class MapsByHand:
    """Softmax over all tokens of every layer at half the latent's resolution, from its queries and keys in float64,
    mean over heads: `maps`, one (B, P, T) a layer, of the passes that run while the context is open."""

    def __init__(self, model):
        self.maps: list[Tensor] = []
        self._hooks, self._queries = [], {}
        unet = unet_of(model).denoiser
        for name, block in unet.named_modules():
            if hasattr(block, "attn2"):
                self._hooks += [block.attn2.to_q.register_forward_hook(self._keep(name)),
                                block.attn2.to_k.register_forward_hook(self._attend(name, block.attn2.heads))]

    def __enter__(self) -> MapsByHand:
        return self

    def __exit__(self, *error) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, name: str):
        def keep(module, inputs, output) -> None:
            self._queries[name] = output

        return keep

    def _attend(self, name: str, heads: int):
        def attend(module, inputs, output) -> None:
            query = self._queries[name].detach().double()
            if query.shape[1] == (SIDE // 8 // 2) ** 2:
                self.maps.append(naive_attention(query, output.detach().double(), heads).mean(1))

        return attend


def loss_in_loops(maps: Tensor, masks: Tensor, places: list[tuple[int, int | None]], normalised: bool, squared: bool
                  ) -> float:
    """Eq. 4 of rows (B, P, T), masks (B, h, w) of the latents, and where each row's two words stand."""
    total = 0.0
    for row, (pose, background) in enumerate(places):
        side = int(maps.shape[1] ** 0.5)
        mask = F.avg_pool2d(masks[row][None, None].double(), masks.shape[-1] // side).flatten().tolist()
        for column, wanted in ((pose, mask), (background, [1 - m for m in mask])):
            if column is None:
                continue
            values = maps[row, :, column].tolist()
            largest = max(values) if normalised else 1.0
            errors = [abs(value / largest - m) for value, m in zip(values, wanted, strict=True)]
            total += sum(e * e if squared else e for e in errors) / len(errors)
    return total / len(places)
