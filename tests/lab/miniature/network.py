"""The networks that are trained together: U-Net, text encoder(s), picture encoder, in both topologies."""
from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from .grammar import every_word
from .models import HEADS, UNET, UNET_XL, WIDTH, text_config, untouched_table

VISUAL_TOKENS = 8
REFERENCE_SIZE = 64
POSITIONS = 77
SIDE = 128.0  # pixels: what ComfyUI's sampler tells an SDXL model unless the prompt names a size
START, END, ZERO_PAD = 49406, 49407, 0


class PictureEncoder(torch.nn.Module):
    """Reference pictures to visual tokens that stand beside the words: (B, 3, 64, 64) in 0..1 -> (B, 8, 128)."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (3, 32, 64, 128, 128), []
        for before, after in itertools.pairwise(widths):
            layers += [torch.nn.Conv2d(before, after, 3, 2, 1), torch.nn.GroupNorm(8, after), torch.nn.SiLU(),
                       torch.nn.Conv2d(after, after, 3, 1, 1), torch.nn.GroupNorm(8, after), torch.nn.SiLU()]
        self.features = torch.nn.Sequential(*layers)
        self.position = torch.nn.Parameter(0.02 * torch.randn(1, 16, WIDTH))
        self.queries = torch.nn.Parameter(torch.randn(1, VISUAL_TOKENS, WIDTH))
        self.attention = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = torch.nn.Sequential(torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.GELU(),
                                       torch.nn.Linear(4 * WIDTH, WIDTH))
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.deviation = torch.nn.Linear(WIDTH, WIDTH)
        self.mean = torch.nn.Parameter(torch.zeros(VISUAL_TOKENS, WIDTH))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        cells = self.features(2 * pictures - 1).flatten(2).transpose(1, 2) + self.position
        queries = self.queries.expand(len(pictures), -1, -1)
        tokens = queries + self.attention(queries, cells, cells, need_weights=False)[0]
        return self.mean + self.deviation(self.norm(tokens + self.mlp(tokens)))


class TextEncoder(torch.nn.Module):
    """ComfyUI's own CLIP text transformer over the few hundred tokens that the grammar uses.

    ComfyUI's forward adds in place, which autograd refuses: the same layers are walked here out of place.
    """

    def __init__(self, activation: str = "quick_gelu") -> None:
        super().__init__()
        import comfy.ops
        from comfy.clip_model import CLIPTextModel
        from comfy.sd1_clip import SDTokenizer

        self.tokenizer = SDTokenizer(embedding_size=WIDTH)
        words = {id for chunk in self.tokenizer.tokenize_with_weights(every_word()) for id, _ in chunk}
        self.register_buffer("ids", torch.tensor(sorted(words | {ZERO_PAD})))
        self.place = {id: place for place, id in enumerate(self.ids.tolist())}
        self.end_place = self.place[END]
        self.rows = torch.nn.Parameter(untouched_table()[self.ids])
        model = CLIPTextModel(text_config(activation=activation), torch.float32, "cpu", comfy.ops.disable_weight_init)
        self.model = model.text_model
        self.model.embeddings.token_embedding = None
        self._words: dict[str, list[int]] = {}

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """(B, 77) places in ``rows``; raises KeyError for a word outside the grammar.

        Byte-pair encoding never crosses a blank, so words are encoded once and joined.
        """
        return torch.tensor([self._sentence(text) for text in texts], device=self.rows.device)

    def padded(self, texts: Sequence[str]) -> torch.Tensor:
        """As ``tokens``."""
        return self.tokens(texts)

    def _sentence(self, text: str) -> list[int]:
        places = [self.place[START]]
        for word in text.split():
            if word not in self._words:
                ids = [id for id, _ in self.tokenizer.tokenize_with_weights(word)[0]]
                self._words[word] = [self.place[id] for id in ids[1:ids.index(END)]]
            places += self._words[word]
        if len(places) > POSITIONS - 1:
            raise ValueError(f"{text!r} is longer than {POSITIONS - 2} tokens")
        return places + [self.place[END]] * (POSITIONS - len(places))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, 77) -> (B, 77, 128), causal, after the final norm."""
        return self.states(tokens)[1]

    def condition(self, tokens: torch.Tensor) -> tuple[torch.Tensor, None]:
        """What the U-Net receives: words (B, 77, 128) and no pooled vector."""
        return self(tokens), None

    def ends(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, 77): the first end token and all that follow it."""
        return after_first(tokens, self.end_place)

    def end_rows(self, tokens: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """(B, 77): which outputs of ``others`` stand where ``tokens`` end: those at the same places, or the first
        end."""
        return torch.arange(POSITIONS, device=tokens.device).expand_as(tokens).maximum(first_of(others, self.end_place))

    def states(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, L) -> the penultimate layer's output, and the last layer's after the final norm; each (B, L, 128), L up
        to 77."""
        x = penultimate = self.rows[tokens] + self.model.embeddings.position_embedding.weight[:tokens.shape[1]]
        for layer in self.model.encoder.layers:
            penultimate = x
            attention, y = layer.self_attn, layer.layer_norm1(x)
            q, k, v = (_heads(project(y)) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
            x = x + attention.out_proj(_causal_attention(q, k, v).transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.layer_norm2(x))
        return penultimate, self.model.final_layer_norm(x)


def first_of(tokens: torch.Tensor, token: int) -> torch.Tensor:
    """(B, 1): where ``token`` first stands in every row."""
    return (tokens == token).int().argmax(1, keepdim=True)


def after_first(tokens: torch.Tensor, token: int) -> torch.Tensor:
    """(B, L): the first ``token`` of every row and all that follow it."""
    return torch.arange(tokens.shape[1], device=tokens.device) >= first_of(tokens, token)


def _causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Written out: on a CPU the fused kernel's backward takes six times as long on sequences this short."""
    future = torch.full((q.shape[-2], k.shape[-2]), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    return (q @ k.mT / q.shape[-1] ** 0.5 + future).softmax(-1).to(v.dtype) @ v


def _heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def new_unet(config: dict = UNET) -> torch.nn.Module:
    """ComfyUI's UNetModel in the miniature's widths, initialised, the ends of its residual branches at zero."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(**config, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    initialise(unet)
    for name, layer in unet.named_modules():
        if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
            torch.nn.init.zeros_(layer.weight)
    return unet


def initialise(model: torch.nn.Module) -> None:
    """A start for every weight (ComfyUI's layers are uninitialised memory): uniform fan-in, zero bias, unit norms."""
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, torch.nn.Parameter):
            continue
        if isinstance(layer, torch.nn.Embedding):
            torch.nn.init.normal_(weight, std=0.02)
        elif weight.dim() > 1:
            torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        else:
            torch.nn.init.ones_(weight)
        if getattr(layer, "bias", None) is not None:
            torch.nn.init.zeros_(layer.bias)


def new_networks(seed: int = 0) -> torch.nn.ModuleDict:
    """unet, text, picture: the SD1.x topology, ready to be trained."""
    torch.manual_seed(seed)
    text = TextEncoder()
    initialise(text.model)
    return torch.nn.ModuleDict({"unet": new_unet(), "text": text, "picture": PictureEncoder()})


class TwinTextEncoder(torch.nn.Module):
    """SDXL's two encoders: penultimate layers side by side, and a pooled vector from the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.g = TextEncoder(), TextEncoder("gelu")
        self.projection = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        size = sinusoids(torch.tensor([SIDE, SIDE, 0.0, 0.0, SIDE, SIDE]), 256).flatten()
        self.register_buffer("size", size, persistent=False)

    @property
    def rows(self) -> torch.nn.Parameter:
        return self.l.rows

    @property
    def end_place(self) -> int:
        return self.l.end_place

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """(B, 77) places, padded as the first encoder pads."""
        return self.l.tokens(texts)

    def padded(self, texts: Sequence[str]) -> torch.Tensor:
        """As ``tokens``."""
        return self.tokens(texts)

    def ends(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, 77): the first end token and all that follow it."""
        return self.l.ends(tokens)

    def end_rows(self, tokens: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """(B, 77): which outputs of ``others`` stand where ``tokens`` end."""
        return self.l.end_rows(tokens, others)

    def condition(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 77) -> words (B, 77, 256) and the vector (B, 128 + 1536): pooled text and the picture's size."""
        end = (tokens == self.g.end_place).int().argmax(1, keepdim=True)
        after = torch.arange(POSITIONS, device=tokens.device) > end
        hidden, last = self.g.states(torch.where(after, self.g.place[ZERO_PAD], tokens))
        pooled = self.projection(last[torch.arange(len(tokens), device=tokens.device), end[:, 0]])
        vector = torch.cat([pooled, self.size.expand(len(tokens), -1)], 1)
        return torch.cat([self.l.states(tokens)[0], hidden], -1), vector


def sinusoids(values: torch.Tensor, width: int) -> torch.Tensor:
    """(N,) -> (N, width): cosines, then sines, of frequencies from 1 down to 1/10000."""
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(width // 2) / (width // 2))
    angles = values[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


def new_networks_xl(seed: int = 0) -> torch.nn.ModuleDict:
    """unet, text: the SDXL topology (v-prediction, no picture encoder), ready to be trained."""
    torch.manual_seed(seed)
    text = TwinTextEncoder()
    initialise(text.l.model)
    initialise(text.g.model)
    return torch.nn.ModuleDict({"unet": new_unet(UNET_XL), "text": text})


def predicts_velocity(networks: torch.nn.ModuleDict) -> bool:
    """True for the SDXL twin (v-prediction), False for the SD1.x miniature (eps-prediction)."""
    return isinstance(networks["text"], TwinTextEncoder)
