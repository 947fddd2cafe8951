"""The contextualizer on other text encoders than CLIP, and on prompts that are not the simplest."""
from __future__ import annotations

import random

import pytest
import torch

from personalize.nodes.papers.context.contextualizer import ContextNetwork, Sizes
from personalize.nodes.papers.context.learning import Learning, train_contextualizer
from personalize.nodes.papers.context.loss import hidden_word_logits, masked_language_loss
from personalize.nodes.papers.context.masking import MASK, hidden, hidden_words, hideable, masked
from personalize.nodes.papers.context.terms import MaskedLanguageLoss
from personalize.nodes.text.encode import encode
from personalize.nodes.text.encoders import text_encoders
from personalize.nodes.text.tokens import PromptTokenizer
from personalize.nodes.training.assembly import open_training
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.plan import Plan, Settings
from personalize.nodes.training.recipe import TemplateRecipe
from personalize.nodes.training.session import text_session
from support.trainings import subject
from tiny.text_encoders import FAMILIES

ENCODERS = ("sd15", "z_image", "qwen_image", "flux1")
SCENES = ("dog red snow boat", "cat blue grass lamp")
OTHERS = ("one", "two", "four", "five", "seven", "ten", "big", "small", "new", "old")


@pytest.fixture(params=ENCODERS)
def clip(request):
    """CLIP, Qwen3, Qwen2.5-VL, and T5 beside a CLIP that gives its pooled output alone."""
    return FAMILIES[request.param]() if request.param in FAMILIES else request.getfixturevalue(request.param)[1]


def prompts(count, shuffled):
    """Each word of a scene tells the others, and nothing of the two after it; shuffled, no word tells another."""
    draw = random.Random(1)
    scenes = [[draw.choice(OTHERS), *draw.choice(SCENES).split(), draw.choice(OTHERS)] for _ in range(count)]
    if shuffled:
        words = [word for scene in scenes for word in scene]
        draw.shuffle(words)
        scenes = [words[start:start + 6] for start in range(0, len(words), 6)]
    return [" ".join(scene) for scene in scenes]


def learned_on(clip, texts, **changes):
    how = Learning(**{"steps": 60, "batch": 6, "rate": 0.03, "share": 0.3, "width": 32, "layers": 1, **changes})
    return train_contextualizer(clip, texts, how, "mine", lambda _: None, check_every=1000)


@pytest.mark.slow
def test_it_learns_what_words_tell_of_each_other(clip):
    figures = learned_on(clip, prompts(700, shuffled=False)).figures
    assert figures["accuracy"] > figures["unigram"] + 0.15


def test_it_learns_nothing_where_words_tell_nothing(sd15):
    figures = learned_on(sd15[1], prompts(700, shuffled=True)).figures
    assert figures["accuracy"] < figures["unigram"] + 0.05


def hidden_in(clip, prompt, words, counts):
    """The prompt with these words hidden, and a network of random weights that knows them."""
    tokenizer = PromptTokenizer(clip, counts)
    tokens = tokenizer(prompt)
    places = [place for place in hideable(tokens, range(10**6)) if tokens.layout.pieces[place].text in words]
    assert len(places) >= len(words)
    torch.manual_seed(3)
    vectors = {MASK: {e.key: torch.randn(1, e.width) for e in text_encoders(clip)},
               **{name: {e.key: torch.randn(count, e.width) for e in text_encoders(clip)}
                  for name, count in counts.items()}}
    with torch.no_grad():
        width = encode(clip, [tokens], [vectors]).cond.shape[-1]
    return masked(tokens, places, tokenizer), vectors, ContextNetwork(Sizes(width, 9, 32, 1, 4)).eval()


def loss_of(clip, tokens, vectors, network):
    logits = hidden_word_logits(network, encode(clip, [tokens], [vectors]))
    return masked_language_loss(logits, torch.arange(len(logits)) % 9)


def test_every_vector_of_every_word_gets_the_gradient_of_finite_differences(clip):
    counts = {"<x>": 2, "<y>": 1}
    with text_session(clip) as text:
        tokens, vectors, network = hidden_in(text, "a <x> beside a red <y> on the beach", ("red", "beach"), counts)
        assert tokens.placeholders == {"<x>", "<y>", MASK} and len(hidden(tokens)) >= 2
        key = PromptTokenizer(text, {}).sequence[0].key
        for name in counts:
            rows = vectors[name][key].requires_grad_()
            gradient, = torch.autograd.grad(loss_of(text, tokens, vectors, network), rows)
            assert gradient.abs().amax(1).min() > 1e-6, "every vector has a part in it"
            direction, size, slopes = gradient / gradient.norm(), 1e-2, []
            for sign in (1, -1):
                moved = {**vectors, name: {**vectors[name], key: (rows + sign * size * direction).detach()}}
                slopes.append(loss_of(text, tokens, moved, network).item())
            assert (slopes[0] - slopes[1]) / (2 * size) == pytest.approx(gradient.norm().item(), rel=0.05, abs=2e-4)


def test_words_beyond_the_first_77_tokens_are_hidden_too(clip):
    long = " ".join(["a red boat on a blue lake"] * 12) + " under a <x> moon"
    with text_session(clip) as text:
        tokens, vectors, network = hidden_in(text, long, ("boat", "moon"), {"<x>": 2})
        assert len(hidden(tokens)) == 13 and hidden(tokens)[-1] > 77
        assert len(hidden_words(tokens)) == 13 and len(set(hidden_words(tokens))) == 2
        whole = loss_of(text, tokens, vectors, network)
        rows = vectors["<x>"][PromptTokenizer(text, {}).sequence[0].key].requires_grad_()
        gradient, = torch.autograd.grad(loss_of(text, tokens, vectors, network), rows)
    assert whole.isfinite() and gradient.abs().max() > 0


def test_a_contextualizer_of_another_kind_of_encoder_is_refused_by_name(sd15, z_image):
    for checkpoint, other in ((sd15, z_image), (z_image, sd15)):
        made = learned_on(other[1], prompts(60, shuffled=False), steps=1, batch=1)
        plan = Plan(*checkpoint, (subject(),), (EmbeddingPart(),), (MaskedLanguageLoss(("a {} at sea",), made),),
                    TemplateRecipe(), Settings(steps=1, batch_size=1))
        with (pytest.raises(ValueError, match="The contextualizer mine was trained on another text encoder than this"),
              torch.inference_mode(), open_training(plan) as trainer):
            trainer.rehearse()
