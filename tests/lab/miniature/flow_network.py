"""The networks of the miniature Z-Image: a transformer over one sequence of text and picture, and a language model."""
from __future__ import annotations

from collections.abc import Sequence

import torch

from .grammar import every_word
from .models import QWEN, QWEN_VOCABULARY, TRANSFORMER, MiniatureTokenizerQwen, untouched_table
from .network import after_first, first_of, initialise

END_OF_PROMPT = 151645  # <|im_end|>: the template's tokens after the prompt begin with it
LONGEST, NO_TOKEN = 64, -1
LAYER = -2              # whose output is the prompt's, as in Z-Image


class LanguageModel(torch.nn.Module):
    """ComfyUI's own Qwen3 over the few hundred tokens that the grammar and the chat template use."""

    def __init__(self) -> None:
        super().__init__()
        import comfy.ops
        from comfy.text_encoders.llama import Qwen3_4B

        self.tokenizer = MiniatureTokenizerQwen()
        self._words: dict[str, list[int]] = {}
        words = every_word().split()
        ids = {id for word in words for id in (*self._pieces(word), *self._pieces(f" {word}"))}
        self.template = self._ids("")
        self.register_buffer("ids", torch.tensor(sorted(ids | set(self.template))))
        self.place = {id: place for place, id in enumerate(self.ids.tolist())}
        self.end_place = self.place[END_OF_PROMPT]
        self.before = self.template.index(END_OF_PROMPT)
        self.rows = torch.nn.Parameter(untouched_table(QWEN_VOCABULARY)[self.ids])
        self.model = Qwen3_4B({**QWEN, "vocab_size": 1}, torch.float32, "cpu", comfy.ops.disable_weight_init).model
        self.model.embed_tokens = None

    def _ids(self, text: str) -> list[int]:
        return [id for id, _ in self.tokenizer.tokenize_with_weights(text)["qwen3_4b"][0]]

    def _pieces(self, word: str) -> list[int]:
        if word not in self._words:
            self._words[word] = self.tokenizer.qwen3_4b.tokenizer(word)["input_ids"]
        return self._words[word]

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """(B, L) places in ``rows``, the chat template's among them; raises KeyError for a word outside the grammar,
        and ValueError for texts of different lengths.

        Byte-pair encoding never crosses a blank, so words are encoded once and joined.
        """
        return torch.tensor([self.sentence(text) for text in texts], device=self.rows.device)

    def padded(self, texts: Sequence[str]) -> torch.Tensor:
        """(B, ``LONGEST``) places of texts of any length, ``NO_TOKEN`` after their ends."""
        padding = [NO_TOKEN] * LONGEST
        return torch.tensor([(self.sentence(text) + padding)[:LONGEST] for text in texts])

    def sentence(self, text: str) -> list[int]:
        """The places of one text."""
        words = text.split()
        pieces = [id for number, word in enumerate(words) for id in self._pieces(f" {word}" if number else word)]
        return [self.place[id] for id in (*self.template[:self.before], *pieces, *self.template[self.before:])]

    def condition(self, tokens: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(B, L) -> what the transformer receives: words (B, L, 128) and no pooled vector."""
        return self.states(self.rows[tokens])[0], None

    def ends(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L): the template's tokens after the prompt."""
        return after_first(tokens, self.end_place)

    def end_rows(self, tokens: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """(B, L): which outputs of ``others`` stand where ``tokens`` end: the template's, counted from the prompt's
        end."""
        moved = first_of(others, self.end_place) - first_of(tokens, self.end_place)
        return (torch.arange(tokens.shape[1], device=tokens.device) + moved).clamp(min=0)

    def states(self, embedded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, L, 128) -> the output of ``LAYER``, and the last layer's after the final norm."""
        last, penultimate = self.model(None, embeds=embedded, intermediate_output=LAYER,
                                       final_layer_norm_intermediate=False)
        return penultimate, last

    def word_scores(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L) -> (B, L, words): logits of the token after each."""
        return self.states(self.rows[tokens])[1] @ self.rows.T


def new_transformer() -> torch.nn.Module:
    """ComfyUI's NextDiT in the miniature's widths, initialised; its blocks change nothing yet."""
    import comfy.ops
    from comfy.ldm.lumina.model import NextDiT

    transformer = NextDiT(**TRANSFORMER, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    initialise(transformer)
    for name, parameter in transformer.named_parameters():
        if name.endswith("pad_token"):
            torch.nn.init.normal_(parameter, std=0.02)
        elif "adaLN_modulation" in name or name.startswith("final_layer.linear"):
            torch.nn.init.zeros_(parameter)
    return transformer


def new_networks_flow(seed: int = 0) -> torch.nn.ModuleDict:
    """unet (a transformer), text: the Z-Image topology; the text encoder is to be taught its language, then frozen."""
    torch.manual_seed(seed)
    text = LanguageModel()
    initialise(text.model)
    return torch.nn.ModuleDict({"unet": new_transformer(), "text": text})


def is_flow(networks: torch.nn.ModuleDict) -> bool:
    """True for the miniature Z-Image."""
    return isinstance(networks["text"], LanguageModel)
