"""The techniques' methods on the miniature world: what they share, change, draw and compare."""
from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

from claims.bounds import SUBJECT, ClassWord, Truth, nearest_named
from claims.harness import Harness
from claims.judging import judge
from claims.options import TECHNIQUES
from claims.store import Cell, Drawn, Store
from claims.task import task_for
from claims.technique import load_technique
from claims.training import Trained, subject_of, train
from claims.world import Sampling, World
from miniature.factors import Color, color_rgb
from miniature.grammar import said
from miniature.subjects import public_subjects

SUBJECTS = public_subjects()
QUICK = Sampling(steps=2)


def test_methods_share_noise_and_training_leaves_the_checkpoint_as_it_was(world, task):
    """An embedding that learns nothing draws, bit by bit, what the class word draws."""
    from claims.techniques.core import Embedding, Learning

    before = ClassWord().draw(world, task, None)
    untouched = Embedding("TI+CoRe", Learning(2, 2, 0.0), rescaled=False).draw(world, task, None)
    learned = Embedding("TI+CoRe", Learning(2, 2, 0.1)).draw(world, task, None)
    after = ClassWord().draw(world, task, None)
    for number in (0, 1):
        assert torch.equal(before.pictures[number], untouched.pictures[number])
        assert torch.equal(before.pictures[number], after.pictures[number])
        assert not torch.equal(before.pictures[number], learned.pictures[number])
    assert not torch.equal(*task.noise(world)) and not torch.equal(task.noise(world), task.noise(world, "again"))


def test_core_pulls_with_the_share_of_the_gradient_that_is_wanted(world, task, monkeypatch):
    from claims.techniques import core
    from claims.techniques.core import RELEASED, Embedding, Learning

    monkeypatch.setattr(core, "PROBED", 5)
    monkeypatch.setattr(core, "PROBED_BATCHES", 3)
    plain = Embedding("TI+CoRe", Learning(12, 2, 5e-3), rescaled=False)
    wanted = [replace(plain, share=share).pulling(world, task).weighting for share in (0.5, 2.0)]
    for weighting in wanted:
        assert weighting.embedding / RELEASED.embedding == pytest.approx(weighting.attention / RELEASED.attention)
    assert wanted[1].attention == pytest.approx(4 * wanted[0].attention)
    measured = plain._measured_share(world, task)
    assert wanted[0].attention == pytest.approx(RELEASED.attention * 0.5 / measured)
    doubled = replace(plain, weighting=RELEASED.times(2, 2))._measured_share(world, task)
    assert doubled == pytest.approx(2 * measured, rel=0.3)  # not quite: the vector has moved otherwise
    assert plain.pulling(world, task) is plain and replace(plain, weighting=None, share=1.0).terms(task) == ()


def test_a_word_of_several_vectors_and_the_weights_beside_it_are_learned(world, task):
    from claims.techniques.core import Embedding, Learning
    from claims.techniques.overfitting import PARTS, WithWeights

    word = Embedding("TI", Learning(2, 2, 0.1), None, rescaled=False, vectors=3).draw(world, task, None)
    assert word.learned["clip_l"].shape == (3, 128)
    before = ClassWord().draw(world, task, None)
    for weights in PARTS:
        for rate in (0.0, 1e-3):
            drawn = WithWeights("some", weights, Learning(1, 2, rate), word_rate=0.0).draw(world, task, None)
            assert torch.equal(drawn.pictures[0], before.pictures[0]) == (rate == 0.0)
    assert torch.equal(ClassWord().draw(world, task, None).pictures[0], before.pictures[0])


def test_diverse_context_learns_otherwise_and_with_another_contextualizer_again(files, task, tmp_path):
    from claims.contextualizer import write_for
    from claims.techniques.core import Learning
    from claims.techniques.mlm import Customised, WithMaskedWords

    world = World(*files)
    world.contextualizer_file = tmp_path / "contextualizer.safetensors"
    before = Harness(world, Store(tmp_path)).key(WithMaskedWords("TI", "TI", Learning(2, 2, 0.1)), task)
    write_for(world, world.contextualizer_file, steps=1)
    for baseline in ("TI", "XTI"):
        plain = Customised("plain", baseline, Learning(2, 2, 0.1)).draw(world, task, None)
        idle, pulled = (WithMaskedWords("MLM", baseline, Learning(2, 2, 0.1), weight=weight).draw(world, task, None)
                        for weight in (0.0, 1.0))
        assert torch.equal(plain.learned["clip_l"], idle.learned["clip_l"])
        assert not torch.equal(plain.learned["clip_l"], pulled.learned["clip_l"])
        assert not torch.equal(plain.pictures[0], pulled.pictures[0])
    assert Harness(world, Store(tmp_path)).key(WithMaskedWords("TI", "TI", Learning(2, 2, 0.1)), task) != before


@pytest.fixture
def two_class_pictures(monkeypatch):
    from claims.techniques import detex

    monkeypatch.setattr(detex, "CLASS_PICTURES", 2)
    detex._drawn_class.cache_clear()
    yield
    detex._drawn_class.cache_clear()


def test_detex_is_drawn_again_from_what_its_cell_keeps_and_with_a_picture_s_words(world, task, two_class_pictures):
    from claims.techniques.core import Learning
    from claims.techniques.detex import Detex, Keeping

    detex = Detex("DETEX", Learning(2, 4, 1e-3))
    before, cell = ClassWord().draw(world, task, None), Cell(detex.draw(world, task, None), {})
    again, pose, background = (Keeping("", detex, kept).draw(world, task, cell).pictures
                               for kept in ((), ("pose",), ("background",)))
    vectors = {name: cell.drawn.learned[f"{name}.clip_l"] for name in ("word", "pose", "background")}
    assert all(each.shape == (1, 128) for each in vectors.values())
    assert all(torch.equal(again[n], cell.drawn.pictures[n]) for n in (0, 1))
    assert not any(torch.equal(one[n], other[n]) for n in (0, 1)
                   for one, other in ((again, pose), (again, background), (pose, background), (again, before.pictures)))
    assert torch.equal(ClassWord().draw(world, task, None).pictures[0], before.pictures[0])


def test_every_ablation_of_detex_learns_otherwise(world, task, two_class_pictures):
    from claims.techniques.core import Learning
    from claims.techniques.detex import Detex

    detex = Detex("DETEX", Learning(2, 4, 1e-3), attention=1.0)
    changes = ({}, {"mapped": False}, {"attention": 0.0}, {"filtered": 0.0}, {"filtered": 1.0}, {"inside": True},
               {"pose_is": "view"}, {"pictures": 2})
    whole, *others = (replace(detex, **change)._trained(world, task).weights for change in changes)
    for change, other in zip(changes[1:], others, strict=True):
        assert whole.keys() == other.keys() and any(not torch.equal(whole[name], other[name]) for name in whole), change


def test_baselines_that_train_weights_see_pictures_of_the_class(world, task, two_class_pictures):
    from claims.techniques.core import Learning
    from claims.techniques.detex import Plain, subject_with

    assert subject_with(task, world, 5, False).prior is None
    prior = subject_with(task, world, 5, True).prior
    assert len(prior.pictures) == 2 and prior.pictures[0].caption == f"Photo of a {task.identity.kind}"
    pictures = [Plain(name, Learning(1, 2, 1e-3)).draw(world, task, None).pictures[0]
                for name in ("TI", "Custom-Diffusion", "DreamBooth")]
    assert not any(torch.equal(pictures[i], pictures[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_layers_of_prompts_drawn_together_are_those_of_each_alone(world, task):
    from claims.techniques.mlm import Customised, Learning

    together = Customised("XTI", "XTI", Learning(1, 2, 0.5)).draw(world, task, None)
    alone = Customised("XTI", "XTI", Learning(1, 2, 0.5)).draw(
        world, replace(task, templates=task.templates[1:], kinds=task.kinds[1:]), None)
    word = Customised("TI", "TI", Learning(1, 2, 0.5)).draw(world, task, None)
    assert torch.allclose(together.pictures[1], alone.pictures[0], atol=2 / 255)
    assert not torch.allclose(together.pictures[1], word.pictures[1], atol=4 / 255)


def test_refining_changes_only_the_vector_and_draws_only_what_failed(world, task):
    from claims.techniques.core import Again, Learning, TestTime, concept_of, learned_by
    from personalize.nodes.text.concept import initial_vectors

    start = initial_vectors(concept_of(task), world.networks.clip)
    missed = Cell(Drawn({}, start), {0: {"text": 1.0}, 1: {"text": 0.5}})
    assert torch.equal(learned_by(missed, task).vectors["clip_l"], start["clip_l"])
    tried, idle, refined = (method.draw(world, task, missed) for method in (
        Again("", ClassWord()), TestTime("", ClassWord(), learning=Learning(1, 2, 0.0)),
        TestTime("", ClassWord(), learning=Learning(1, 2, 0.1))))
    assert list(tried.pictures) == list(refined.pictures) == [1]
    assert torch.equal(tried.pictures[1], idle.pictures[1])
    assert not torch.equal(tried.pictures[1], refined.pictures[1])
    nothing = TestTime("", ClassWord()).draw(world, task, Cell(Drawn({}, start), {0: {"text": 1.0}}))
    assert nothing.pictures == {}


def test_second_stage_changes_the_model_only_while_it_draws(world, task):
    from claims.techniques.core import Learning, SecondStage, concept_of, drawn_with
    from personalize.nodes.text.concept import initial_vectors

    start = Cell(Drawn({}, initial_vectors(concept_of(task), world.networks.clip)), {})
    before = drawn_with(world, task, concept_of(task))
    changed = SecondStage("", ClassWord(), Learning(1, 2, 1e-2)).draw(world, task, start)
    assert not torch.equal(before[0], changed.pictures[0])
    assert torch.equal(before, drawn_with(world, task, concept_of(task)))


def test_image_blocks_are_drawn_again_from_what_their_cell_keeps(world, task, tmp_path):
    """ViCo as trained, from its files, and with references used in other ways."""
    from claims.techniques.vico import RELEASED, Learning, Look, Looking, ViCo

    vico = ViCo("ViCo", Learning(2, 2, 1e-3))
    harness, before = Harness(world, Store(tmp_path), lambda line: None), ClassWord().draw(world, task, None)
    first, again, shared, released = (harness.cell(method, task).drawn for method in (
        vico, Looking("again", vico, Look()), Looking("shared", vico, Look(halves="shared")),
        Looking("released", vico, Look(object_mask=RELEASED))))
    for number in (0, 1):
        assert torch.equal(first.pictures[number], again.pictures[number])
        assert not torch.equal(first.pictures[number], before.pictures[number])
    assert any(not torch.equal(first.pictures[n], shared.pictures[n]) for n in (0, 1))
    assert any(not torch.equal(first.pictures[n], released.pictures[n]) for n in (0, 1))
    assert first.figures["mask_iou"] == again.figures["mask_iou"] and 0 <= first.figures["mask_iou"] <= 1
    assert all(torch.equal(before.pictures[n], ClassWord().draw(world, task, None).pictures[n]) for n in (0, 1))


def test_a_second_subject_takes_turns_with_its_own_word_and_pictures(world, task):
    from claims.techniques.vico import starting_at, subject_beside
    from personalize.nodes.papers.vico.nodes_train import PersonalizeTrainingReferences, PersonalizeTrainViCo
    from personalize.nodes.training.diffusion import DiffusionLoss
    from personalize.nodes.training.plan import Settings

    own, other, taught = subject_of(task, starting_at(task, "")), subject_beside(task), []
    assert other.concept.placeholder != own.concept.placeholder and len(other.pictures) == 5
    assert not any(torch.equal(one.variants, two.variants) for one in own.pictures for two in other.pictures)
    parts, = PersonalizeTrainViCo.execute(1e-3, 5e-3, "decoder", "Eq. 5").args
    trained = train(world, own, parts, (DiffusionLoss(),), Settings(2, 2),
                    PersonalizeTrainingReferences.execute().args[0],
                    lambda trainer: taught.append({row.subject for row in trainer.plan.recipe.rows(
                        trainer.plan.subjects, trainer.step, 2, 0)["subject"]}), others=[other])
    assert taught == [{0, 1}] * 2 and trained.concept.placeholder == own.concept.placeholder
    blocks, = trained.files
    names = [own.concept.placeholder, other.concept.placeholder]
    assert json.loads(blocks.metadata["words"]) == names == [concept.placeholder for concept in trained.concepts]


def test_two_subjects_are_drawn_each_with_its_word_and_its_reference(world):
    """Words that learn nothing draw what both class words draw; blocks that learn change it."""
    from claims.techniques.vico import Learning, companion
    from claims.techniques.vico_two import Otherwise, TwoLooks, TwoWords, named, side_by_side

    for subject in SUBJECTS:
        task = task_for(subject, "varied", 2, 0, QUICK, side_by_side)
        other = companion(subject.identity, 0).identity.kind
        assert other != subject.identity.kind and task.kinds == ("beside", "beside")
        assert {said(prompt).second_kind for prompt in task.prompts(SUBJECT)} == {other}
        assert all(f"{SUBJECT} next to a <other> " in prompt and other not in prompt for prompt in named(task))
        assert all(f"{SUBJECT} {subject.identity.kind} next to a <other> {other} " in prompt
                   for prompt in named(task, True))
    classes = ClassWord().draw(world, task, None).pictures
    words, learned = (TwoWords("", Learning(1, 2, 0.0, rate)).draw(world, task, None).pictures for rate in (0.0, 0.1))
    looking = TwoLooks("", Learning(1, 2, 0.1, 0.0))
    drawn = looking.draw(world, task, None)
    alone, again, nouns = (Otherwise("", looking, nouns, references).draw(world, task, Cell(drawn, {})).pictures
                           for nouns, references in ((False, False), (False, True), (True, True)))
    assert all(torch.allclose(classes[n], words[n], atol=1e-4) and torch.allclose(words[n], alone[n], atol=1e-4)
               and torch.equal(drawn.pictures[n], again[n]) for n in (0, 1))
    assert not any(torch.allclose(one[n], other[n], atol=1e-3) for n in (0, 1)
                   for one, other in ((words, learned), (words, drawn.pictures), (drawn.pictures, nouns)))


def test_pull_of_a_term_is_measured_where_it_pulls():
    norms = {"diffusion|word": 3.0, "diffusion|blocks": 4.0, "both|word": 6.0, "both|blocks": 8.0, "one|word": 1.5,
             "one|blocks": 0.0, "none|word": 0.0, "none|blocks": 0.0}
    history = [{"norms": dict.fromkeys(norms, 9.0)}, {"norms": {}}, {"norms": norms}]
    expected = {"gradient_of_both": 2.0, "gradient_of_one": 0.5, "gradient_of_none": 0.0}
    assert Trained(None, {}, history).figures() == pytest.approx(expected)
    alone = [{"norms": {"diffusion|word": 3.0, "diffusion|blocks": 4.0}}] * 2
    assert Trained(None, {}, alone).figures() == {}


def test_unseen_reference_and_fit_of_masks(task):
    from claims.techniques.vico import mask_figures, references, unseen_scene

    for subject in SUBJECTS:
        full = task_for(subject, "varied", 2, 0, QUICK)
        scene = unseen_scene(full)
        assert scene.identity == subject.identity and scene.background not in {s.background for s in full.scenes}
    pictures, masks = references(task, 0)
    assert pictures.shape == (1, 3, 128, 128) and masks.shape == (1, 1, 128, 128)
    assert not any(torch.equal(pictures[0], picture) for picture in task.pictures)
    truth = torch.zeros(1, 1, 8, 8)
    truth[..., :4, :] = 1
    found = torch.zeros(2, 1, 4, 4)
    found[0, :, 1:3], found[1, :, :2] = 1, 1  # 4 of 12 patches, then all
    assert mask_figures({0: found[0], 1: found[1]}, truth) == {"mask_iou": pytest.approx((4 / 12 + 1) / 2)}
    assert mask_figures({}, truth) == {}


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_the_truth_shows_what_each_prompt_asks_for(subject):
    task = task_for(subject, "varied", 24, 0, QUICK)
    assert len(set(task.templates)) == 24
    for prompt, kind in zip(task.prompts(SUBJECT), task.kinds, strict=True):
        asked, scene = said(prompt), Truth._scene(task, prompt)
        assert asked.pose in (None, scene.pose) and asked.background in (None, scene.background)
        assert asked.accessory in (None, scene.accessory) and asked.style in (None, scene.style)
        assert (asked.second_kind, asked.relation) == (
            (scene.second.kind, scene.second.relation) if scene.second else (None, None))
        if kind == "attribute":
            assert (scene.identity.kind, scene.identity.pattern) == (subject.identity.kind, "plain")
            assert scene.identity.first.name == asked.first
        else:
            assert scene.identity == subject.identity


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_nearest_words_are_what_a_caption_can_say_and_no_other_colour_is_nearer(subject):
    near = nearest_named(subject.identity)
    assert near.named and near.kind == subject.identity.kind and nearest_named(near) == near
    for own, said_instead in ((subject.identity.first, near.first), (subject.identity.second, near.second)):
        distances = {Color(hue, tone): sum((a - b) ** 2 for a, b in zip(color_rgb(own), color_rgb(Color(hue, tone))))
                     for hue in range(16) for tone in range(3)}
        assert distances[said_instead] == min(distances.values())


def test_looks_are_not_judged_where_the_prompt_changes_them(world):
    task = task_for(SUBJECTS[0], "varied", 24, 0, QUICK)
    verdict = judge(world, task, dict(enumerate(world.reconstruct(task.pictures[:1]).expand(24, -1, -1, -1))))
    measured = {kind: {name for number, values in verdict.items() if task.kinds[number] == kind for name in values}
                for kind in set(task.kinds)}
    assert measured.pop("attribute") == {"text", "class", "first_pose"}
    assert all({"identity", "colours", "colours_and_pattern"} <= names for names in measured.values())


@pytest.mark.parametrize("name", TECHNIQUES)
def test_techniques_name_methods_once_and_compare_what_exists(name):
    technique = load_technique(name, quick=False)
    names = [method.name for method in technique.methods]
    assert len(set(names)) == len(names) and not any(re.search(r"\s", name) for name in names)
    assert technique.against.keys() | set(technique.against.values()) <= set(names)


def test_references_share_place_and_pose_only_in_the_limited_set():
    varied, limited = (task_for(SUBJECTS[2], which, 24, 0, QUICK) for which in ("varied", "limited"))
    assert varied.shared("pose") is None and varied.shared("background") is None
    assert limited.shared("pose") == limited.scenes[0].pose and limited.pictures.shape == (5, 3, 128, 128)
