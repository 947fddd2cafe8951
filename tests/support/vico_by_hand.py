"""ViCo written out: both streams go through the U-Net together, module by module, as the paper's Fig. 2 draws it.

No hooks, patches or fused attention; softmax, norms and feed-forward in plain operations; the image blocks are read
from the tensors of a file.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Masker = Callable[[Tensor], Tensor]


class DualStream:
    """A U-Net with image blocks.

    tensors: of the image blocks, by their names in the authors' files.
    mask: given maps (m, P) of m references, which of their patches count, (m, P).
    before_softmax: masked keys are left out of the softmax. strength: 1 for all that a block changes.
    """

    def __init__(self, unet, tensors: Mapping[str, Tensor], mask: Masker | None, before_softmax: bool,
                 strength: float = 1.0):
        self.unet, self.mask, self.before_softmax, self.strength = unet, mask, before_softmax, strength
        self.dtype = next(unet.parameters()).dtype
        self.blocks: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            place, _, rest = name.removeprefix("diffusion_model.").partition(".image_cross_attention.")
            self.blocks.setdefault(place, {})[rest] = tensor.to(self.dtype)

    def __call__(self, x: Tensor, references: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None,
                 positions: Sequence[Sequence[Sequence[int]]], reference_context: Tensor | None = None,
                 reference_y: Tensor | None = None, control: Mapping[str, Sequence[Tensor]] | None = None) -> Tensor:
        """What the U-Net predicts for x (R, C, h, w), row i reading references[i] (k, C, h, w).

        positions: for every row and each of its k references, those of the word in the prompt. reference_context,
        reference_y: prompts of the references where they are not those of the rows. control: what a ControlNet adds to
        the rows, "output" by input block and "middle".
        Afterwards `maps` holds the references' maps (R · k, P, T) of the layers with image blocks, in order.
        """
        from comfy.ldm.modules.diffusionmodules.openaimodel import timestep_embedding

        unet, count = self.unet, references.shape[1]
        x, references, context = (given.to(self.dtype) for given in (x, references, context))
        own = context if reference_context is None else reference_context.to(self.dtype)
        self.contexts, self.maps = (context, own.repeat_interleave(count, 0)), []
        self.positions = [where for row in positions for where in row]
        own_y = y if reference_y is None else reference_y
        self.embs = []
        for rows, vector in ((1, y), (count, own_y)):
            emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels).to(self.dtype))
            self.embs.append(
                (emb if vector is None else emb + unet.label_emb(vector.to(self.dtype))).repeat_interleave(rows, 0)
            )
        streams, skips = (x, references.flatten(0, 1)), []
        for i, block in enumerate(unet.input_blocks):
            streams = self._block(f"input_blocks.{i}", block, streams)
            skips.append(streams if control is None else (streams[0] + control["output"][i], streams[1]))
        streams = self._block("middle_block", unet.middle_block, streams)
        if control is not None:
            streams = streams[0] + control["middle"][0], streams[1]
        for i, block in enumerate(unet.output_blocks):
            streams = tuple(torch.cat(pair, 1) for pair in zip(streams, skips.pop()))
            size = skips[-1][0].shape if skips else None
            streams = self._block(f"output_blocks.{i}", block, streams, size)
        return unet.out(streams[0])

    def _block(self, place: str, block, streams: tuple[Tensor, Tensor], size=None) -> tuple[Tensor, Tensor]:
        from comfy.ldm.modules.attention import SpatialTransformer
        from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, Upsample

        for i, module in enumerate(block):
            if isinstance(module, SpatialTransformer):
                streams = self._transformer(f"{place}.{i}", module, *streams)
            elif isinstance(module, ResBlock):
                streams = tuple(module(h, emb) for h, emb in zip(streams, self.embs))
            elif isinstance(module, Upsample):
                streams = tuple(module(h, output_shape=size) for h in streams)
            else:
                streams = tuple(module(h) for h in streams)
        return streams

    def _transformer(self, place: str, module, x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        starts = x, reference
        x, reference = (_projected(module, module.proj_in, module.norm(h)) for h in starts)
        for block in module.transformer_blocks:
            x, _ = _text_block(block, x, self.contexts[0])
            reference, probabilities = _text_block(block, reference, self.contexts[1])
        if place in self.blocks:
            maps = probabilities.mean(1)
            self.maps.append(maps)
            column = torch.stack([row[:, list(where)].sum(-1) for row, where in zip(maps, self.positions)])
            mask = None if self.mask is None else self.mask(column.detach()).reshape(len(x), -1)
            heads = module.transformer_blocks[-1].attn2.heads
            keys = reference.reshape(len(x), -1, reference.shape[-1])
            read = image_block(self.blocks[place], heads, x, keys, mask, self.before_softmax)
            x = x + self.strength * (read - x)
        return tuple(start + _projected_back(module, h, start.shape) for start, h in zip(starts, (x, reference)))


def image_block(weights: Mapping[str, Tensor], heads: int, x: Tensor, reference: Tensor, mask: Tensor | None,
                before_softmax: bool) -> Tensor:
    """Self-attention, attention to the reference, feed-forward; each with its norm and residual."""
    normed = _norm(x, weights["norm1.weight"], weights["norm1.bias"])
    x = x + _attention(weights, "attn1", heads, normed, normed)[0]
    normed = _norm(x, weights["norm2.weight"], weights["norm2.bias"])
    x = x + _attention(weights, "attn2", heads, normed, reference, mask, before_softmax)[0]
    return x + _feed_forward(weights, _norm(x, weights["norm3.weight"], weights["norm3.bias"]))


def _text_block(block, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """The frozen transformer block, and its text attention's probabilities (R, heads, P, T)."""
    weights = {name: p.to(x.dtype) for name, p in block.named_parameters()}
    heads = block.attn1.heads
    normed = _norm(x, weights["norm1.weight"], weights["norm1.bias"])
    x = x + _attention(weights, "attn1", heads, normed, normed)[0]
    normed = _norm(x, weights["norm2.weight"], weights["norm2.bias"])
    added, probabilities = _attention(weights, "attn2", heads, normed, context)
    x = x + added
    return x + _feed_forward(weights, _norm(x, weights["norm3.weight"], weights["norm3.bias"])), probabilities


def _attention(weights: Mapping[str, Tensor], name: str, heads: int, x: Tensor, context: Tensor,
               mask: Tensor | None = None, before_softmax: bool = False) -> tuple[Tensor, Tensor]:
    query, key, value = (F.linear(given, weights[f"{name}.{part}.weight"]) for given, part in
                         ((x, "to_q"), (context, "to_k"), (context, "to_v")))
    width = query.shape[-1] // heads
    outputs, all_probabilities = [], []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(width)
        if mask is not None and before_softmax:
            scores = torch.where(mask[:, None, :] > 0, scores, torch.finfo(scores.dtype).min)
        exponentials = torch.exp(scores - scores.amax(-1, keepdim=True))
        probabilities = exponentials / exponentials.sum(-1, keepdim=True)
        if mask is not None and not before_softmax:
            probabilities = mask[:, None, :] * probabilities
        outputs.append(probabilities @ value[..., part])
        all_probabilities.append(probabilities)
    result = F.linear(torch.cat(outputs, -1), weights[f"{name}.to_out.0.weight"], weights[f"{name}.to_out.0.bias"])
    return result, torch.stack(all_probabilities, 1)


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def _feed_forward(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    value, gate = F.linear(x, weights["ff.net.0.proj.weight"], weights["ff.net.0.proj.bias"]).chunk(2, -1)
    gated = value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    return F.linear(gated, weights["ff.net.2.weight"], weights["ff.net.2.bias"])


def _projected(module, projection, h: Tensor) -> Tensor:
    tokens = h if module.use_linear else projection(h)
    tokens = tokens.flatten(2).transpose(1, 2)
    return projection(tokens) if module.use_linear else tokens


def _projected_back(module, tokens: Tensor, shape: torch.Size) -> Tensor:
    tokens = module.proj_out(tokens) if module.use_linear else tokens
    h = tokens.transpose(1, 2).reshape(shape[0], -1, *shape[2:])
    return h if module.use_linear else module.proj_out(h)


def otsu_mask(maps: Tensor) -> Tensor:
    """Otsu's threshold from scikit-image, row by row."""
    from skimage.filters import threshold_otsu

    return torch.stack([(row > threshold_otsu(row.double().numpy())).float() for row in maps])


def released_mask(maps: Tensor) -> Tensor:
    """The authors' ten thresholds, tried one after the other."""
    masks = []
    for row in maps:
        scaled = (row - row.min()) / (row.max() - row.min())
        best, found = -1.0, None
        for tenth in range(10):
            above = scaled >= torch.tensor(tenth / 10, dtype=scaled.dtype)
            if above.any() and not above.all():
                share = above.double().mean()
                distance = scaled[above].double().mean() - scaled[~above].double().mean()
                between = float(share * (1 - share) * distance ** 2)
                if between > best:
                    best, found = between, above
        masks.append(torch.ones_like(row) if found is None else found.float())
    return torch.stack(masks)
