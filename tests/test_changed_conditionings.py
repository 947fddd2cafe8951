"""Words in conditionings that other nodes and packs have changed: read where they are, or said why not."""
from __future__ import annotations

import nodes
import pytest
import torch

from personalize.nodes.attention.words import words_of
from personalize.nodes.papers.harmonize.nodes_orthogonal import PersonalizeOrthogonalize
from personalize.nodes.text.layout import LAYOUT
from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans
from personalize.nodes.text.pairs import in_pairs, keys_of, token_count
from personalize.nodes.training.denoiser import check_same_family
from personalize.nodes.training.session import training_session
from support.companions import with_pairs
from support.layouts import spans_in
from support.recorded import DOG, HAT, PROMPT, by_hand, close, plain_run, recording
from support.sampling import encoded, sample
from support.vico_scene import Scene, dog

LONG = "a dog, " + ", ".join(["a very long prompt"] * 22)


def with_spans(clip, text, words="dog\nred hat"):
    with torch.inference_mode():
        return PersonalizeEncodeWithSpans.execute(clip, text, words)[0]


def joined(first, second):
    with torch.inference_mode():
        return nodes.ConditioningConcat().concat(first, second)[0]


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("negative", ["", LONG])
def test_maps_of_tokens_in_pairs(request, kind, order, negative):
    """Against what the U-Net itself projects and multiplies, where the model takes pairs apart."""
    plain = request.getfixturevalue(kind)
    model, clip = with_pairs(plain.model, plain.clip)
    positive, uncond = with_spans(clip, PROMPT), encoded(clip, negative)
    assert positive[0][0].shape[1] == 154 and in_pairs(positive[0][0])
    expected, seen = plain_run(model, positive, uncond, steps=1)
    if order == "after":
        recorded, record = recording(model, words_of(["dog", "red hat"]))
    else:
        recorded, record = recording(plain.model, words_of(["dog", "red hat"]))
        recorded = with_pairs(recorded, clip)[0]
    assert torch.equal(sample(recorded, positive, uncond, steps=1), expected)
    for layer in record.current.layers:
        attention = by_hand(seen, layer)[1:]
        copies = attention.shape[-1] // 77
        assert copies == (2 if negative else 1)
        for word, positions in (("dog", DOG), ("red hat", HAT)):
            places = [77 * copy + position for copy in range(copies) for position in positions]
            assert close(record.current.map(word, layer, 0), attention[..., places].sum(-1))


def test_pairs_with_negative_weights_and_a_prompt_given_apart(sd15):
    _model, clip = with_pairs(sd15.model, sd15.clip)
    text = "(ugly:-1.0) (blue:-0.5) dog"
    cond = encoded(clip, text)[0][0]
    assert in_pairs(cond) and token_count(cond) == 77 and torch.equal(keys_of(cond), cond[:, ::2])
    assert torch.equal(cond[:, 3], -cond[:, 2]) and torch.equal(cond[:, 7], cond[:, 6])
    assert words_of(["dog"], sd15.clip, text).of({"cross_attn": cond}) == {"dog": (3,)}
    longer = joined([[cond, {}]], encoded(clip, LONG))[0][0]
    assert token_count(longer) == 231 and words_of(["dog"], sd15.clip, text).of({"cross_attn": longer}) == {}


def test_plain_conditionings_are_not_in_pairs(any_checkpoint):
    for text in ("", PROMPT, LONG, "dog dog dog dog", "(dog:0.0)"):
        assert not in_pairs(encoded(any_checkpoint.clip, text)[0][0])
    assert not in_pairs(torch.zeros(1, 154, 8)) and token_count(torch.zeros(1, 154, 8)) == 0


def test_what_core_nodes_make_of_a_conditioning(sd15):
    one, other = with_spans(sd15.clip, PROMPT), with_spans(sd15.clip, LONG, "")
    words = words_of(["dog"])

    def places(conditioning):
        return words.of({**conditioning[0][1], "cross_attn": conditioning[0][0]})

    assert places(joined(one, other)) == {"dog": DOG} and places(joined(other, one)) == {"dog": (2,)}
    with torch.inference_mode():
        assert places(nodes.ConditioningAverage().addWeighted(one, other, 0.5)[0]) == {"dog": DOG}
        assert places(nodes.ConditioningZeroOut().zero_out(one)[0]) == {}
    cut = [[one[0][0][:, :60], one[0][1]]]
    assert places(cut) == {} and places([[one[0][0][:, :60], {}]]) == {}


def test_a_sampler_that_could_not_record_says_why(sd15, caplog):
    negative, cases = encoded(sd15.clip, ""), {}
    with torch.inference_mode():
        cases["it was zeroed out"] = nodes.ConditioningZeroOut().zero_out(with_spans(sd15.clip, PROMPT))[0]
    cases["it has 60 tokens where its prompt has 77"] = [[c[:, :60], o] for c, o in with_spans(sd15.clip, PROMPT)]
    cases["it has 154 tokens where its prompt has 77"] = encoded(sd15.clip, LONG)
    cases["found no 'dog' in the positive conditioning. Write"] = with_spans(sd15.clip, "a cat", "")
    for expected, positive in cases.items():
        recorded, record = recording(sd15.model, words_of(["dog"], sd15.clip, PROMPT))
        if "no 'dog'" in expected:
            recorded, record = recording(sd15.model, words_of(["dog"]))
        result = sample(recorded, positive, negative, steps=1)
        assert torch.equal(result, sample(sd15.model, positive, negative, steps=1))
        (said,) = caplog.messages
        assert expected in said and record.current.why_no_maps("the test", "dog") == said
        caplog.clear()
    recorded, _ = recording(sd15.model, words_of(["dog"]))
    sample(recorded, with_spans(sd15.clip, PROMPT), negative, steps=1)
    assert not caplog.messages


def test_an_encoder_of_other_tokens_gets_no_spans(sd15, caplog):
    (_, options), = with_spans(with_pairs(*sd15[:2])[1], PROMPT)
    assert spans_in(options) == {"dog": DOG, "red hat": HAT} and not caplog.messages
    clip = sd15.clip.clone()
    encoder = clip.cond_stage_model.clip_l

    def shorter(chunks):
        cond, *more = type(encoder).encode_token_weights(encoder, chunks)
        return cond[:, :60], *more

    clip.patcher.add_object_patch("clip_l.encode_token_weights", shorter)
    (cond, options), = with_spans(clip, PROMPT)
    (said,) = caplog.messages
    assert cond.shape[1] == 60 and LAYOUT not in options and "gives 60 tokens for a prompt of 77" in said


@pytest.mark.parametrize("order", ["before", "after"])
def test_references_see_prompts_in_pairs_as_they_see_plain_ones(sd15, order):
    """With positive weights alone, pairs that are taken apart are the plain prompt."""
    scene = Scene(sd15)
    references = [dog()]
    paired, scene.clip = with_pairs(sd15.model, sd15.clip)
    scene.positive, scene.negative = scene.encode("a photo of <my-dog> on grass"), encoded(scene.clip, "blurry")
    plain = Scene(sd15, "a photo of <my-dog> on grass")
    expected = plain.sample(references)
    model = scene.patched(references, model=paired if order == "before" else None)
    if order == "after":
        model = with_pairs(model, sd15.clip)[0]
    assert torch.equal(scene.plain(model), expected) and not torch.equal(scene.plain(paired), expected)


def test_training_and_orthogonalizing_say_that_pairs_do_not_fit(sd15):
    model, clip = with_pairs(sd15.model, sd15.clip)
    with training_session(model, clip) as session, pytest.raises(ValueError,
                                                                 match="154 tokens of a prompt that has 77"):
        session.load()
        check_same_family(session)
    inputs = {"words": "dog", "strength": 1.0, "basis": "words", "last_tokens": 2}
    with pytest.raises(ValueError, match="holds every token twice, as CLIP NegPip encodes prompts"):
        PersonalizeOrthogonalize.execute(with_spans(clip, PROMPT), **inputs)
    with pytest.raises(ValueError, match="was zeroed out"), torch.inference_mode():
        PersonalizeOrthogonalize.execute(nodes.ConditioningZeroOut().zero_out(with_spans(sd15.clip, PROMPT))[0],
                                         **inputs)
