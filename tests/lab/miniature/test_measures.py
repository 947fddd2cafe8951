"""Measures against cases whose answer is known."""
from __future__ import annotations

import random

import pytest
import torch

from miniature.data import masks_tensor, pictures_tensor
from miniature.factors import CLASSES, Identity, color_rgb, sample_identity, sample_scene, with_factors
from miniature.measures import (
    NEAR,
    colors_kept,
    kept_against_prompt,
    kept_unasked,
    pose_bias,
    reference_identity,
    text_alignment,
    whole_similarity,
)
from miniature.oracle import CHOICES, Judgement, truth
from miniature.renderer import draw
from miniature.subjects import public_subjects


def perfect(scene, drawing=None) -> Judgement:
    """What an oracle without errors says."""
    labels = truth([scene])
    factors = {name: options[int(labels[name][0])] for name, options in CHOICES.items()}
    mask = torch.from_numpy(drawing.subject > 0.5).float() if drawing is not None else torch.zeros(1)
    return Judgement(factors, frozenset(), mask, torch.zeros(1))


def test_text_alignment_is_the_share_of_stated_factors_and_the_class_is_one():
    scene = with_factors(sample_scene(random.Random(1)), pose="lying", background="moon", accessory="none", second=None)
    kind = scene.identity.kind
    other = next(name for name in CLASSES if name != kind)
    for subject in (kind, "<it>"):
        assert text_alignment(perfect(scene), f"a {subject} lying on the moon", kind) == 1
        assert text_alignment(perfect(scene), f"a {subject} jumping on the moon", kind) == pytest.approx(2 / 3)
    assert text_alignment(perfect(scene), "a <it> lying on the moon", other) == pytest.approx(2 / 3)
    assert text_alignment(perfect(scene), "a <it> jumping in the snow", other) == 0
    assert text_alignment(perfect(scene), "a <it>", kind) == 1


def test_what_is_kept_unasked_tells_only_of_prompts_that_say_nothing_of_it():
    judged = perfect(with_factors(sample_scene(random.Random(2)), pose="lying", background="moon"))
    assert kept_unasked(judged, "a <it> jumping", "background", "moon") is True
    assert kept_unasked(judged, "a <it> jumping", "background", "snow") is False
    assert kept_unasked(judged, "a <it> jumping", "pose", "lying") is None
    assert kept_unasked(judged, "a <it> on the moon", "background", "moon") is None


def test_a_whole_picture_is_most_like_itself():
    from miniature.autoencoder import WEIGHTS
    from miniature.oracle import load_oracle

    oracle, rng = load_oracle(WEIGHTS.with_name("oracle.safetensors")), random.Random(4)
    pictures = pictures_tensor([draw(sample_scene(rng)) for _ in range(4)])
    everything = torch.ones(1, 1, 128, 128)
    for own, picture in enumerate(pictures):
        reference = reference_identity(oracle, picture[None], everything)
        likeness = [whole_similarity(oracle, other, reference) for other in pictures]
        assert likeness[own] == pytest.approx(1, abs=1e-5) and max(likeness) == likeness[own]
        assert min(likeness) < 0.99


def test_pose_bias_counts_only_prompts_that_ask_for_another_pose():
    scene = sample_scene(random.Random(2))
    seen = [perfect(with_factors(scene, pose=pose)) for pose in ("lying", "jumping", "lying", "standing")]
    prompts = ["a <it> jumping", "a <it> jumping", "a <it> lying", "a <it> in the snow"]
    assert pose_bias(seen, prompts, "lying") == 0.5
    with pytest.raises(ValueError, match="other than"):
        pose_bias(seen[2:], prompts[2:], "lying")


def test_only_prompts_that_ask_for_something_else_tell_of_a_bias():
    judged = perfect(with_factors(sample_scene(random.Random(2)), pose="lying", background="moon"))
    assert kept_against_prompt(judged, "a <it> jumping in the snow", "background", "moon") is True
    assert kept_against_prompt(judged, "a <it> jumping in the snow", "pose", "standing") is False
    assert kept_against_prompt(judged, "a <it> on the moon", "background", "moon") is None
    assert kept_against_prompt(judged, "a <it> on the moon", "pose", "lying") is None
    assert kept_against_prompt(judged, "a <it> jumping in the snow", "pose", None) is None


def _distance(one: Identity, other: Identity) -> float:
    """Smallest RGB distance between a colour of one and a colour of the other."""
    colors = [[torch.tensor(color_rgb(c), dtype=torch.float32) for c in (each.first, each.second)]
              for each in (one, other)]
    return min(float((a - b).norm()) for a in colors[0] for b in colors[1])


def test_colours_are_found_in_every_reference_and_not_in_other_subjects():
    subjects = public_subjects()
    right = wrong = shown = 0
    for i, subject in enumerate(subjects):
        others = subjects[i + 1:] + subjects[:i]
        stranger = next(other for other in others if _distance(other.identity, subject.identity) > 2 * NEAR)
        for scene in subject.sets["limited"][:2] + subject.sets["varied"][3:]:
            drawing = draw(scene)
            picture, judged = pictures_tensor([drawing])[0], perfect(scene, drawing)
            right += colors_kept(picture, judged, subject.identity)
            wrong += colors_kept(picture, judged, stranger.identity)
            shown += 1
    assert right / shown > 0.9 and wrong / shown < 0.1, (right / shown, wrong / shown)


def test_identity_vector_of_one_picture_is_itself():
    from miniature.measures import identity_similarity, reference_identity
    from miniature.oracle import Oracle

    torch.manual_seed(0)
    oracle = Oracle().eval()
    drawing = draw(sample_scene(random.Random(5), identity=sample_identity(random.Random(5))))
    pictures, masks = pictures_tensor([drawing]), masks_tensor([drawing])
    reference = reference_identity(oracle, pictures, masks)
    with torch.no_grad():
        itself = oracle.identity(pictures, (masks > 0.5).float())[0]
    judged = Judgement({}, frozenset(), masks[0, 0], itself)
    assert identity_similarity(judged, reference) == pytest.approx(1.0, abs=1e-5)
