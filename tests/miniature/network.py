"""The networks that are trained together: U-Net, text encoder, picture encoder; and how they become one checkpoint."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Sequence

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from .grammar import every_word
from .models import HEADS, ROWS, UNET, WIDTH, text_config, untouched_table

VISUAL_TOKENS = 8
REFERENCE_SIZE = 64
POSITIONS = 77
START, END = 49406, 49407


class PictureEncoder(torch.nn.Module):
    """Reference pictures to visual tokens that stand beside the words: (B, 3, 64, 64) in 0..1 -> (B, 8, 128)."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (3, 32, 64, 128, 128), []
        for before, after in zip(widths, widths[1:]):
            layers += [torch.nn.Conv2d(before, after, 3, 2, 1), torch.nn.GroupNorm(8, after), torch.nn.SiLU(),
                       torch.nn.Conv2d(after, after, 3, 1, 1), torch.nn.GroupNorm(8, after), torch.nn.SiLU()]
        self.features = torch.nn.Sequential(*layers)
        self.position = torch.nn.Parameter(0.02 * torch.randn(1, 16, WIDTH))
        self.queries = torch.nn.Parameter(torch.randn(1, VISUAL_TOKENS, WIDTH))
        self.attention = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = torch.nn.Sequential(torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.GELU(),
                                       torch.nn.Linear(4 * WIDTH, WIDTH))
        self.norm = torch.nn.LayerNorm(WIDTH)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        cells = self.features(2 * pictures - 1).flatten(2).transpose(1, 2) + self.position
        queries = self.queries.expand(len(pictures), -1, -1)
        tokens = queries + self.attention(queries, cells, cells, need_weights=False)[0]
        return self.norm(tokens + self.mlp(tokens))


class TextEncoder(torch.nn.Module):
    """ComfyUI's own CLIP text transformer over the few hundred tokens that the grammar uses.

    ComfyUI's forward adds in place, which autograd refuses: the same layers are walked here out of place.
    """

    def __init__(self) -> None:
        super().__init__()
        import comfy.ops
        from comfy.clip_model import CLIPTextModel
        from comfy.sd1_clip import SDTokenizer

        self.tokenizer = SDTokenizer(embedding_size=WIDTH)
        words = {id for chunk in self.tokenizer.tokenize_with_weights(every_word()) for id, _ in chunk}
        self.register_buffer("ids", torch.tensor(sorted(words)))
        self.place = {id: place for place, id in enumerate(self.ids.tolist())}
        self.rows = torch.nn.Parameter(untouched_table()[self.ids])
        model = CLIPTextModel(text_config(), torch.float32, "cpu", comfy.ops.disable_weight_init)
        self.model = model.text_model
        self.model.embeddings.token_embedding = None
        self._words: dict[str, list[int]] = {}

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """(B, 77) places in ``rows``; raises KeyError for a word outside the grammar.

        Byte-pair encoding never crosses a blank, so words are encoded once and joined.
        """
        return torch.tensor([self._sentence(text) for text in texts], device=self.rows.device)

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
        x = self.rows[tokens] + self.model.embeddings.position_embedding.weight
        for layer in self.model.encoder.layers:
            attention, y = layer.self_attn, layer.layer_norm1(x)
            q, k, v = (_heads(project(y)) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + attention.out_proj(mixed)
            x = x + layer.mlp(layer.layer_norm2(x))
        return self.model.final_layer_norm(x)


def _heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def new_unet() -> torch.nn.Module:
    """ComfyUI's UNetModel in the miniature's widths, initialised, its last layer at zero."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(**UNET, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
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
    """unet, text, picture: ready to be trained."""
    torch.manual_seed(seed)
    text = TextEncoder()
    initialise(text.model)
    return torch.nn.ModuleDict({"unet": new_unet(), "text": text, "picture": PictureEncoder()})


def checkpoint_tensors(networks: torch.nn.ModuleDict, autoencoder: torch.nn.ModuleDict, latent_spread: float) -> dict:
    """Everything under ComfyUI's SD1.x key names, fp16. ``latent_spread``: standard deviation of raw latents."""
    text: TextEncoder = networks["text"]
    tensors = {f"model.diffusion_model.{k}": v for k, v in networks["unet"].state_dict().items()}
    tensors |= {f"cond_stage_model.clip_l.transformer.text_model.{k}": v for k, v in text.model.state_dict().items()}
    tensors |= {f"first_stage_model.taesd_{k}": v for k, v in autoencoder.state_dict().items()}
    tensors |= {f"picture_encoder.{k}": v for k, v in networks["picture"].state_dict().items()}
    tensors |= {"first_stage_model.vae_scale": torch.tensor(latent_spread),
                "first_stage_model.vae_shift": torch.tensor(0.0),
                f"cond_stage_model.clip_l.{ROWS}weight": text.rows}
    halves = {key: value.detach().half().cpu().contiguous() for key, value in tensors.items()}
    return halves | {f"cond_stage_model.clip_l.{ROWS}ids": text.ids.to(torch.int32).cpu()}


def save_checkpoint(networks: torch.nn.ModuleDict, autoencoder: torch.nn.ModuleDict, latent_spread: float, file: Path,
                    figures: dict[str, str]) -> None:
    """One safetensors file that the stock *Load Checkpoint* reads; ``figures`` go into the metadata."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file(checkpoint_tensors(networks, autoencoder, latent_spread), partial, metadata=figures)
    partial.replace(file)


def load_networks(networks: torch.nn.ModuleDict, tensors: dict[str, torch.Tensor]) -> None:
    """Give the networks the weights of a checkpoint's tensors (the inverse of ``checkpoint_tensors``)."""
    text = "cond_stage_model.clip_l."
    places = {"model.diffusion_model.": networks["unet"], "picture_encoder.": networks["picture"],
              f"{text}transformer.text_model.": networks["text"].model}
    for prefix, module in places.items():
        own = {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}
        module.load_state_dict(own)
    saved = {id: row for id, row in zip(tensors[f"{text}{ROWS}ids"].tolist(), tensors[f"{text}{ROWS}weight"])}
    with torch.no_grad():
        for place, id in enumerate(networks["text"].ids.tolist()):
            if id in saved:
                networks["text"].rows[place] = saved[id].float()


def load_picture_encoder(tensors: dict[str, torch.Tensor]) -> PictureEncoder:
    """The picture encoder out of a checkpoint's tensors, in float32, not training."""
    prefix = "picture_encoder."
    encoder = PictureEncoder()
    encoder.load_state_dict({k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)})
    return encoder.eval().requires_grad_(False)
