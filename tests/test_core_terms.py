"""CoRe's loss terms in real training: values by hand, gradients by finite differences, learning, cost."""
from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch

from personalize.nodes.papers.core.terms import ContextAttentionLoss, ContextEmbeddingLoss
from personalize.nodes.text.concept import Concept
from personalize.nodes.text.encoders import text_encoders
from personalize.nodes.text.vectors import WordVectors
from personalize.nodes.training.assembly import open_training
from personalize.nodes.training.batch import Subject
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.interfaces import DenoiserSide, Results
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import UNetPart
from personalize.nodes.training.plan import Plan, Settings
from personalize.nodes.training.recipe import TemplateRecipe
from support import core_by_hand
from support.core_by_hand import PromptByHand, maps, queries_and_keys
from support.pictures import MadePicture

DESERT = ("a photo of a", "in the red desert")
CLOSE = 1e-5  # the U-Net in float64; prompts and latents in float32
LONG = ("a photo of a", " ".join(["green hills and"] * 30))


def template(parts):
    return f"{parts[0]} {{}} {parts[1]}"


def concept(clip, placeholder="<my-dog>", class_words="dog", count=1, seed=1):
    """A concept far from its class word, so that no loss is close to zero."""
    draw = torch.Generator().manual_seed(seed)
    vectors = {e.key: e.table.float().std() * torch.randn(count, e.width, generator=draw) for e in text_encoders(clip)}
    return Concept(placeholder, class_words, class_words, count).with_vectors(vectors)


@contextlib.contextmanager
def core_run(checkpoint, concepts, terms, parts=(EmbeddingPart(),), rows=2, **settings):
    """A Trainer as the Train node makes it, and its first batch."""
    draw = torch.Generator().manual_seed(4)
    subjects = tuple(Subject(c, tuple(MadePicture(torch.rand(1, 64, 64, 3, generator=draw)) for _ in range(2)))
                     for c in concepts)
    plan = Plan(*checkpoint, subjects, parts, terms, TemplateRecipe(),
                Settings(**{"steps": 1, "batch_size": rows, **settings}))
    with torch.inference_mode(), open_training(plan) as trainer:
        yield trainer, trainer.batch(1)


def both(parts, formula="paper", estimate=False, weights=(1.0, 1.0)):
    return (ContextEmbeddingLoss((template(parts),), weights[0], formula),
            ContextAttentionLoss((template(parts),), weights[1], formula, estimate))


def by_hand(clip, parts, concept, subject=None):
    encoders = text_encoders(clip)
    keys = [e.token_key for e in encoders]
    vectors = {e.token_key: concept.vectors[e.key] for e in encoders}
    return PromptByHand(keys, parts[0], subject or vectors, parts[1])


@torch.no_grad()
def losses_by_hand(session, batch, parts, concepts, released, estimate=False):
    """(embedding, attention) of the batch, by loops; concepts: per row."""
    model, clip, latents = session.model, session.clip, batch.latents["subject"]
    embedding, ours, theirs, our_kept, their_kept = [], [], [], [], []
    for row, concept in enumerate(concepts):
        prompts = by_hand(clip, parts, concept), by_hand(clip, parts, concept, concept.class_words)
        encoded = [p.encode(clip) for p in prompts]
        kept = core_by_hand.kept_pairs(*prompts)
        embedding.append(core_by_hand.embedding_loss(encoded[0][0][0], encoded[1][0][0], *kept, released))
        noised = latents.noisy[row:row + 1], latents.sigma[row:row + 1]
        queries = keys = [queries_and_keys(model, *noised, *e) for e in encoded]
        if estimate:
            queries = [queries_and_keys(model, *noised, *by_hand(clip, ("a photo of a", ""), concept).encode(clip))] * 2
        for side, found in zip((ours, theirs), map(maps, queries, keys)):
            side.append([layer[0] for layer in found])
        our_kept.append(kept[0])
        their_kept.append(kept[1])
    attention = core_by_hand.attention_loss(ours, theirs, our_kept, their_kept, released)
    if released:
        attention *= 6 / len(concepts)
    return sum(embedding) / len(embedding), attention


# ------------------------------------------------------------------------------------------------ values
@pytest.mark.parametrize("formula", ["paper", "released"])
@pytest.mark.parametrize("estimate", [False, True], ids=["exact", "estimate"])
def test_values_equal_hand(any_exact, formula, estimate):
    c = concept(any_exact.clip)
    with core_run(any_exact, [c], both(DESERT, formula, estimate)) as (trainer, batch):
        found = trainer.objective.backward(batch)
        expected = losses_by_hand(trainer.session, batch, DESERT, [c, c], formula == "released", estimate)
    assert found["context embedding"] == pytest.approx(expected[0], rel=1e-4)
    assert found["context attention"] == pytest.approx(expected[1], rel=CLOSE)
    assert expected[1] > 1e-12


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("parts, class_words, count", [
    (DESERT, "golden retriever puppy", 1), (DESERT, "dog", 3), (LONG, "dog", 1), (LONG, "teddy bear", 3)],
    ids=["long class", "three vectors", "154 tokens", "154 tokens, three vectors"])
def test_lengths(kind, exact, parts, class_words, count):
    checkpoint = exact(kind)
    c = concept(checkpoint.clip, class_words=class_words, count=count)
    with core_run(checkpoint, [c], both(parts), rows=1) as (trainer, batch):
        found = trainer.objective.backward(batch)
        expected = losses_by_hand(trainer.session, batch, parts, [c], released=False)
    assert found["context embedding"] == pytest.approx(expected[0], rel=1e-4)
    assert found["context attention"] == pytest.approx(expected[1], rel=CLOSE)


@pytest.mark.parametrize("parts", [DESERT, (" ".join(["green"] * 73), "in the red desert")], ids=["short", "straddles"])
def test_two_subjects_in_one_batch(exact, parts):
    """Each row compares with its own class words, also where the prompts of the rows differ in chunks."""
    sdxl = exact("sdxl")
    concepts = [concept(sdxl.clip), concept(sdxl.clip, "<my-bear>", "fluffy teddy bear toy", 2, seed=2)]
    with core_run(sdxl, concepts, both(parts)) as (trainer, batch):
        assert [row.subject for row in batch.rows["subject"]] == [0, 1]
        found = trainer.objective.backward(batch)
        rows = list(batch.micro_batches(1))
        singles = [losses_by_hand(trainer.session, rows[i], parts, concepts[i:i + 1], False)
                   for i in (0, 1)]
    if parts == DESERT:
        assert found["context attention"] == pytest.approx((singles[0][1] + singles[1][1]) / 2, rel=CLOSE)
    assert found["context embedding"] == pytest.approx((singles[0][0] + singles[1][0]) / 2, rel=1e-4)


def test_micro_batches_give_the_same(exact):
    sd15 = exact("sd15")
    terms = both(DESERT, "released")
    c = concept(sd15.clip)
    with core_run(sd15, [c], terms, rows=3) as (trainer, batch):
        whole = trainer.objective.backward(batch)
        pieces = [trainer.objective.backward(row) for row in batch.micro_batches(1)]
    for name, value in whole.items():
        assert sum(piece[name] for piece in pieces) == pytest.approx(value, rel=1e-4)


def test_text_before_the_subject_contributes_nothing(any_checkpoint):
    """Only what stands after S* differs: with nothing but the end token there, the m − 1 others add zero, and a longer
    beginning only dilutes the mean."""
    c = concept(any_checkpoint.clip)
    values = {}
    for before in ("a", "a b c d e f g h i"):
        term = ContextEmbeddingLoss((f"{before} {{}}",), 1.0, "paper")
        with core_run(any_checkpoint, [c], (term,)) as (trainer, batch):
            text = trainer.objective.text
            encodes = term.needs(batch, text, torch.Generator()).encodes
            with torch.no_grad():
                found = [trainer.session.clip.encode_from_tokens(_tokens(trainer, e.tokens[0], c))
                         for e in encodes.values()]
            position = encodes["object"].tokens[0].layout.span("subject")[0]
            assert torch.equal(found[0][:, :position], found[1][:, :position])
            values[before] = trainer.objective.backward(batch)["context embedding"] * (position + 1)
            leaf, = {leaf for part in trainer.parts for leaf in part.groups[0].params[:1]}
            assert leaf.grad.abs().sum() > 0
            distance = 1 - torch.cosine_similarity(found[0][0, position + 1], found[1][0, position + 1], dim=-1)
            assert values[before] == pytest.approx(float(distance), rel=1e-3)


def _tokens(trainer, tokens, concept):
    from personalize.nodes.text.tokens import comfy_tokens
    return comfy_tokens(tokens, text_encoders(trainer.session.clip), {concept.placeholder: concept.vectors})


def test_a_subject_at_the_end_of_a_chunk_has_no_gradient_from_what_stands_before(sd15):
    """Restricted to the words before S*, the loss and its gradient are zero."""
    from personalize.nodes.papers.core.loss import context_embedding_loss
    from personalize.nodes.text.context_pairs import aligned_context
    from personalize.nodes.text.encode import encode

    c = concept(sd15.clip)
    with core_run(sd15, [c], both(DESERT)) as (trainer, batch):
        objects, references = both(DESERT)[0].needs(batch, trainer.objective.text, torch.Generator()).encodes.values()
        vectors = {c.placeholder: {key: v.clone().requires_grad_() for key, v in c.vectors.items()}}
        ours = encode(trainer.session.clip, objects.tokens, [vectors]).cond
        theirs = encode(trainer.session.clip, references.tokens, [{}]).cond
        subject = objects.tokens[0].layout.span("subject")[0]
        pairs = aligned_context(objects.tokens[0], references.tokens[0])
        before = tuple(p for p in pairs if p[0] < subject)
        loss = context_embedding_loss(ours, theirs, [before])
        gradient, = torch.autograd.grad(loss, vectors[c.placeholder]["clip_l"])
        assert len(before) == 5 and abs(loss.item()) < 1e-6 and gradient.abs().max() == 0
        after = tuple(p for p in pairs if p[0] > subject)
        assert context_embedding_loss(ours, theirs, [after]).item() > 1e-4


# ------------------------------------------------------------------------------------------------ gradients
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("formula", ["paper", "released"])
@pytest.mark.parametrize("which", ["embedding", "exact", "estimate"])
def test_gradients_equal_finite_differences(kind, request, formula, which):
    checkpoint = request.getfixturevalue(kind)
    c = concept(checkpoint.clip)
    term = both(DESERT, formula, estimate=which == "estimate")[which != "embedding"]
    with core_run(checkpoint, [c], (term,)) as (trainer, batch):
        trainer.objective.backward(batch)
        parameters = trainer.parts[0].groups[0].params
        for parameter, gradient in [(p, p.grad.clone()) for p in parameters]:
            direction = gradient / gradient.norm()
            size = 0.02 * float(parameter.detach().norm())
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.add_(sign * size * direction)
                values.append(_value(trainer, batch, term, reference_at=parameter, shift=sign * size * direction))
                with torch.no_grad():
                    parameter.sub_(sign * size * direction)
            slope = (values[0] - values[1]) / (2 * size)
            assert slope == pytest.approx(float(gradient.norm()), rel=0.02)


def _value(trainer, batch, term, reference_at, shift):
    """The term's value; for the estimate the reference keeps the unshifted vector's queries, as its gradient does."""
    if not getattr(term, "estimate", False):
        return trainer.objective.backward(batch)[term.name]
    shifted = _results(trainer, batch, term)
    with torch.no_grad():
        reference_at.sub_(shift)
        plain = _results(trainer, batch, term)
        reference_at.add_(shift)
    mixed = Results(shifted.encodes, {}, {"object": shifted.maps["object"], "reference": plain.maps["reference"]})
    return term(mixed, batch, DenoiserSide(trainer.session.noise)).item()


class Seen:
    """A loss term that keeps the results it gets, in place of the one it wraps."""

    def __init__(self, term):
        self.name, self.weight, self.window, self.stream = term.name, 1.0, term.window, term.stream
        self.needs, self.term = term.needs, term

    def __call__(self, got, batch, model):
        self.results = got
        return self.term(got, batch, model)


def _results(trainer, batch, term) -> Results:
    """What training gives to `term`."""
    seen, terms = Seen(term), trainer.objective.terms
    trainer.objective.terms = (seen,)
    trainer.objective.backward(batch)
    trainer.objective.terms = terms
    return seen.results


# ------------------------------------------------------------------------------------------------ what is compared
def test_both_terms_draw_the_same_template(sd15):
    templates = tuple(f"a {{}} number {i}" for i in range(50))
    terms = ContextEmbeddingLoss(templates, 1.0, "paper"), ContextAttentionLoss(templates, 1.0, "paper")
    with core_run(sd15, [concept(sd15.clip)], terms) as (trainer, batch):
        drawn = set()
        for seed in range(20):
            needs = [t.needs(batch, trainer.objective.text, torch.Generator().manual_seed(seed)) for t in terms]
            assert needs[0].encodes == needs[1].encodes
            drawn.add(needs[0].encodes["object"].tokens[0].text)
    assert len(drawn) > 10


def test_reference_stays_the_original_model(sd15):
    """While the U-Net is trained, the class prompt still runs on the original weights."""
    c = concept(sd15.clip)
    with core_run(sd15, [c], both(DESERT), parts=(EmbeddingPart(), UNetPart())) as (trainer, batch):
        expected = losses_by_hand(trainer.session, batch, DESERT, [c, c], released=False)
        reference = _results(trainer, batch, trainer.plan.terms[1]).maps["reference"]
        with torch.no_grad():
            for parameter in trainer.parts[1].groups[0].params:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        again = _results(trainer, batch, trainer.plan.terms[1]).maps["reference"]
        assert all(torch.equal(a, b) for a, b in zip(reference, again))
        assert trainer.objective.backward(batch)["context attention"] != pytest.approx(expected[1], rel=1e-2)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trainer.parts[1].groups[0].params[:20])


def test_concept_without_class_words_is_refused(sd15):
    c = replace(concept(sd15.clip), class_words=" ")
    with core_run(sd15, [c], both(DESERT)) as (trainer, batch), \
            pytest.raises(ValueError, match="<my-dog> has no class words"):
        trainer.objective.backward(batch)


# ------------------------------------------------------------------------------------------------ cost and learning
@pytest.mark.parametrize("estimate, runs", [(False, 3), (True, 1)], ids=["exact", "estimate"])
def test_runs_of_the_denoiser(sd15, estimate, runs):
    """Exact: diffusion, object, reference, the last two only up to the last cross-attention. Estimate: one."""
    with core_run(sd15, [concept(sd15.clip)], (DiffusionLoss(), *both(DESERT, estimate=estimate))) as (trainer, batch):
        unet = trainer.session.model.model.diffusion_model
        started, ended = [], []
        hooks = [unet.input_blocks[0][0].register_forward_hook(lambda *a: started.append(torch.is_grad_enabled())),
                 unet.out.register_forward_hook(lambda *a: ended.append(1))]
        trainer.objective.backward(batch)
        for hook in hooks:
            hook.remove()
    assert len(started) == runs and len(ended) == 1
    assert started.count(False) == (0 if estimate else 1)


@pytest.mark.slow
@pytest.mark.parametrize("estimate", [False, True], ids=["exact", "estimate"])
def test_core_terms_fall_when_weighted_up(sd15, estimate):
    """Weights × 1000 bring the context back to the class word's; weights of zero do not."""
    c = concept(sd15.clip)
    c = replace(c, vectors=WordVectors({key: 5 * rows for key, rows in c.vectors.items()}))
    losses = {}
    for times in (0, 1000):
        terms = both(DESERT, "released", estimate, weights=(1.5e-4 * times, 0.05 * times))
        with core_run(sd15, [c], (DiffusionLoss(), *terms), rows=1, steps=30) as (trainer, batch):
            losses["start"] = losses_by_hand(trainer.session, batch, DESERT, [c], released=False)
            trainer.run(lambda trainer, record: True)
            learned = replace(c, vectors=trainer.parts[0].learned_vectors()["<my-dog>"])
            losses[times] = losses_by_hand(trainer.session, batch, DESERT, [learned], released=False)
    for term in (0, 1):
        assert losses[1000][term] < 0.8 * losses["start"][term]
        assert losses[1000][term] < 0.8 * losses[0][term]
