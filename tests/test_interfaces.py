"""One suite for every kind of method the interfaces must carry.

CoRe exact and its estimator; a masked-language-model-shaped term (text only, no pass of the denoiser); a mapper-shaped
part (each row's vector is computed from its picture). The latter two are written here, small, in the shape of the
papers to come.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import comfy.model_management
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from personalize.nodes.papers.core.terms import ContextAttentionLoss, ContextEmbeddingLoss
from personalize.nodes.papers.vico.parts import ImageAttentionPart, WithReferences
from personalize.nodes.text.layout import WORD
from personalize.nodes.text.vectors import WordVectors
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.interfaces import Encode, Needs
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.part import Artifact, AttachedPart, ParamGroup, TrainablePart
from personalize.nodes.training.parts.per_layer import PerLayerPart
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.preview import Painter, preview_noise
from personalize.nodes.training.recipe import TemplateRecipe
from personalize.nodes.training.session import training_session
from support.trainings import (
    CORE,
    TEMPLATES,
    flat_gradient,
    gradients,
    in_place_of_a_step,
    move,
    parameters,
    subject,
    train,
)

MASK_ID = 11


def with_token(tokens, position: int, token_id: int):
    """The same prompt, of one chunk, with another token in every encoder."""
    chunks = []
    for key, (chunk,) in tokens.chunks:
        row = list(chunk)
        row[position] = (token_id, row[position][1])
        chunks.append((key, (tuple(row),)))
    return replace(tokens, chunks=tuple(chunks))


@dataclass(frozen=True)
class MaskedWordLoss:
    """A context word is masked; the encoding at its place must still tell it from 64 others."""

    weight: float = 1.0
    window: tuple[int, int] = (1, 10**9)
    name: str = "masked word"
    stream: ClassVar = "subject"

    def _masked(self, batch, text, rng):
        template = TEMPLATES[int(torch.randint(len(TEMPLATES), (), generator=rng))]
        tokens = text.tokenizer.fill(template, batch.concept(batch.rows["subject"][0]).placeholder)
        position = tokens.layout.of_kind(WORD)[-1]  # the last word: behind the placeholder, which it can see
        return tokens, position

    def needs(self, batch, text, rng):
        tokens, position = self._masked(batch, text, rng)
        return Needs(encodes={"masked": Encode((with_token(tokens, position, MASK_ID),))})

    def __call__(self, got, batch, model):
        encoded = got.encodes["masked"]
        position = encoded.tokens[0].layout.of_kind(WORD)[-1]
        words = torch.randn(64, encoded.cond.shape[-1], generator=torch.Generator().manual_seed(3))
        return F.cross_entropy(encoded.cond[:, position].float() @ words.T,
                               torch.zeros(len(encoded.cond), dtype=torch.long))


@dataclass(frozen=True)
class MapperPart(TrainablePart):
    """<pose> stands for a vector that a small network computes from the row's picture."""

    lr: float = 1e-2
    keeps: ClassVar = (("loras", "mapper"),)

    def attach(self, run):
        width = {"clip_l": run.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight.shape[1]}
        return AttachedMapper(self, width)


class AttachedMapper(AttachedPart):
    touches = frozenset({"text"})
    placeholders = {"<pose>": 1}

    def __init__(self, settings, width):
        draw = torch.Generator().manual_seed(0)
        self.maps = {key: nn.Parameter(torch.randn(3, w, generator=draw) * 0.1) for key, w in width.items()}
        self.groups = [ParamGroup("mapper", list(self.maps.values()), settings.lr)]
        self.grey = torch.full((3,), 0.5)

    def vectors(self, batch):
        colours = torch.stack([batch.subjects[r.subject].pictures[r.picture].variants[r.variant].mean((0, 1))
                               for r in batch.rows["subject"]])
        return {"<pose>": WordVectors({key: (colours @ p)[:, None] for key, p in self.maps.items()}, "row")}

    def shown_vectors(self):
        return {"<pose>": WordVectors({key: (self.grey @ p.detach())[None] for key, p in self.maps.items()})}

    def files(self):
        return [Artifact("loras", "mapper", self.state_dict())]

    def state_dict(self):
        return {key: p.detach() for key, p in self.maps.items()}

    @torch.no_grad()
    def load_state_dict(self, state):
        for key, p in self.maps.items():
            p.copy_(state[key])


ESTIMATED = (CORE[0], ContextAttentionLoss(TEMPLATES, 5e4, "paper", estimate=True))
METHODS = {
    "CoRe exact": dict(terms=(DiffusionLoss(), *CORE)),
    "CoRe as released": dict(terms=(DiffusionLoss(), ContextEmbeddingLoss(TEMPLATES, 50.0, "released"),
                                    ContextAttentionLoss(TEMPLATES, 5e3, "released"))),
    "CoRe estimated": dict(terms=(DiffusionLoss(), *ESTIMATED)),
    "CoRe alone": dict(terms=CORE),
    "CoRe beside an adapter": dict(terms=(DiffusionLoss(), *CORE), parts=(EmbeddingPart(), AdapterPart(lr=1e-2))),
    "masked word": dict(terms=(DiffusionLoss(), MaskedWordLoss())),
    "masked word alone": dict(terms=(MaskedWordLoss(),)),
    "mapper": dict(terms=(DiffusionLoss(),), parts=(EmbeddingPart(), MapperPart()),
                   recipe=TemplateRecipe(("a photo of a {} with <pose>",))),
    "mapper with CoRe": dict(terms=(DiffusionLoss(), *CORE), parts=(EmbeddingPart(), MapperPart()),
                             recipe=TemplateRecipe(("a photo of a {} with <pose>",))),
    "words by layer": dict(terms=(DiffusionLoss(), *CORE), parts=(PerLayerPart(),)),
    "two subjects": dict(terms=(DiffusionLoss(), *CORE), subjects=(
        subject(), subject(placeholder="<my-toy>", count=2))),
}


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def test_gradient_is_the_slope_of_the_objective(sd15, method):
    """Finite differences of the printed loss along the gradient and, added to it, random directions."""
    slopes = []

    def measure(trainer, batch):
        trainer._micro_batches(batch, measured=False)
        gradient = flat_gradient(trainer)
        length, draw = gradient.norm(), torch.Generator().manual_seed(1)
        assert length > 0
        for _ in range(3):
            other = torch.randn(gradient.shape, generator=draw)
            direction = gradient / length + 2 * other / other.norm()
            step = 1e-3 * torch.cat([p.detach().flatten() for p in parameters(trainer)]).norm() / direction.norm()
            values = []
            for side in (1, -2):
                move(trainer, side * step * direction)
                values.append(sum(trainer._micro_batches(batch, measured=False)[0].values()))
            move(trainer, step * direction)
            slopes.append(((values[0] - values[1]) / (2 * step * length), gradient @ direction / length))

    with in_place_of_a_step(measure):
        train(sd15, Settings(steps=1, batch_size=2), **method)
    numeric, analytic = (torch.tensor(values) for values in zip(*slopes))
    torch.testing.assert_close(analytic, numeric, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("settings", [dict(micro_batch=1), dict(checkpointing=True)],
                         ids=["micro-batches", "recomputed"])
def test_memory_settings_do_not_change_the_gradient(sd15, method, settings):
    plain, saving = gradients(sd15, method), gradients(sd15, method, **settings)
    torch.testing.assert_close(saving, plain, atol=1e-4 * float(plain.abs().max()), rtol=1e-3)


def test_resume_is_exact(sd15, method):
    settings = Settings(steps=6, batch_size=2)
    whole, _, end = train(sd15, settings, **method)
    _first, _, state = train(sd15, settings, each_step=lambda trainer, record: record["step"] < 3, **method)
    second, _, resumed = train(sd15, settings, resume=state, **method)
    assert [r["loss"] for r in second.history] == [r["loss"] for r in whole.history]
    assert all(torch.equal(resumed.tensors[name], value) for name, value in end.tensors.items())


def test_sdxl_and_v_prediction_carry_it_too(sdxl_zsnr, method):
    if any(isinstance(part, MapperPart) for part in method.get("parts", ())):
        method = {**method, "parts": tuple(TwoEncoderMapper() if isinstance(p, MapperPart) else p
                                           for p in method["parts"])}
    trainer, _, _ = train(sdxl_zsnr, Settings(steps=2, batch_size=2), **method)
    assert all(record["loss"] == record["loss"] for record in trainer.history)
    assert {name for record in trainer.history for name in record["parts"]} == {t.name for t in trainer.plan.terms}


class TwoEncoderMapper(MapperPart):
    def attach(self, run):
        model = run.clip.cond_stage_model
        return AttachedMapper(self, {key: getattr(model, key).transformer.get_input_embeddings().weight.shape[1]
                                     for key in ("clip_l", "clip_g")})


@pytest.mark.smoke
def test_each_terms_gradient_norm_is_its_own(sd15):
    """The norms on the chart against runs with one term alone."""
    terms = METHODS["CoRe exact"]["terms"]
    together = train(sd15, Settings(steps=1, batch_size=2), terms=terms)[0].history[0]["norms"]
    for term in terms:
        alone = train(sd15, Settings(steps=1, batch_size=2), terms=(term,))[0].history[0]["norms"]
        assert together[f"{term.name}|embedding"] == pytest.approx(alone[f"{term.name}|embedding"], rel=1e-4)


@pytest.mark.parametrize("name", ["CoRe exact", "CoRe estimated", "CoRe beside an adapter"])
def test_measuring_gradients_does_not_change_them(sd15, name):
    from personalize.nodes.training import loop
    method = METHODS[name]
    measured = train(sd15, Settings(steps=2, batch_size=2), **method)[0]
    every, loop.MEASURE_GRADIENTS_EVERY = loop.MEASURE_GRADIENTS_EVERY, 1
    try:
        more = train(sd15, Settings(steps=2, batch_size=2), **method)[0]
    finally:
        loop.MEASURE_GRADIENTS_EVERY = every
    assert [r["loss"] for r in more.history] == pytest.approx([r["loss"] for r in measured.history], rel=1e-5)


# ------------------------------------------------------------------------------------------------ words of parts
POSE = TemplateRecipe(("a photo of a {} with <pose>",))
TAUGHT = (EmbeddingPart(), MapperPart())


def test_a_parts_word_is_drawn_in_previews_and_again_from_its_file(sd15):
    prompt, drawn = "a photo of a <my-dog> with <pose>", {}

    def draw(session, vectors):
        noise = preview_noise(session.model, (64, 64), seed=0)
        return Painter(session, sd15.vae, vectors, [prompt]).draw(prompt, noise, session.family.preview, seed=0)

    def each_step(trainer, record):
        for name, vectors in (("shown", trainer.shown_vectors()), ("as text", trainer.vectors())):
            drawn[name] = draw(trainer.session, vectors)
        drawn["files"], drawn["word"] = trainer.files(), trainer.vectors()
        return False

    train(sd15, Settings(steps=1), parts=TAUGHT, recipe=POSE, each_step=each_step)
    file, = drawn["files"]
    assert (file.kind, file.name) in MapperPart.keeps
    pose = WordVectors({key: torch.full((1, 3), 0.5) @ tensor for key, tensor in file.tensors.items()})
    with training_session(sd15.model, sd15.clip) as session:
        again = draw(session, {**drawn["word"], "<pose>": pose})
    torch.testing.assert_close(again, drawn["shown"], atol=1e-3, rtol=0)
    assert (drawn["as text"] - drawn["shown"]).abs().max() > 0.01


@dataclass(frozen=True)
class WithoutFile(MapperPart):
    keeps: ClassVar = ()


class WithoutPreview(MapperPart):
    def attach(self, run):
        attached = super().attach(run)
        attached.shown_vectors = attached.learned_vectors
        return attached


@pytest.mark.parametrize("part, sentence", [
    (WithoutFile(), "WithoutFile keeps no file that carries <pose> to inference"),
    (WithoutPreview(), "AttachedMapper.shown_vectors leaves out <pose>")])
def test_a_part_that_leaves_its_word_as_plain_text_is_refused(sd15, part, sentence):
    with pytest.raises(TypeError, match=sentence):
        train(sd15, Settings(steps=1), parts=(EmbeddingPart(), part), recipe=POSE)


class AlwaysThere(MapperPart):
    def attach(self, run):
        attached = super().attach(run)
        attached.touches = frozenset({"text", "unet"})
        return attached


def test_a_part_that_a_reference_cannot_do_without_is_refused(sd15):
    with pytest.raises(TypeError, match="AttachedMapper touches the U-Net and has no bypassed"):
        train(sd15, Settings(steps=1), parts=(EmbeddingPart(), AlwaysThere()), recipe=POSE)


# ------------------------------------------------------------------------------------------------ assembly
@pytest.mark.parametrize("where", ["while it runs", "while it opens"])
def test_an_error_leaves_the_models_as_they_were(sd15, where):
    """Blocks of a part are hooks on the U-Net while a training is open."""
    modules = [*sd15.model.model.modules(), *sd15.clip.cond_stage_model.modules()]

    def state():
        hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
        wrapped = sum(len(getattr(module, "weight_function", ())) for module in modules)
        return hooks, wrapped, comfy.model_management.in_training, torch.is_grad_enabled()

    def fail(trainer, record):
        during.append(state())
        raise ArithmeticError

    before, during = state(), []
    parts = (EmbeddingPart(), ImageAttentionPart(), AdapterPart())
    recipe = WithReferences(TemplateRecipe())
    if where == "while it opens":
        parts = (*parts, WithoutFile())
    with pytest.raises((ArithmeticError, TypeError)):
        train(sd15, Settings(steps=1), parts=parts, recipe=recipe, each_step=fail)
    assert state() == before
    assert where == "while it opens" or sum(during[0][:2]) > sum(before[:2])
