"""Where words sit, what the tokens of a prompt are, which real words are near: each against a naive computation."""
from __future__ import annotations

import io

import nodes
import numpy as np
import pytest
import torch

from personalize.nodes.text.apply import clip_with_vectors, known_placeholders
from personalize.nodes.text.embedding_files import prompt_text, save_embedding
from personalize.nodes.text.encoders import text_encoders
from personalize.nodes.text.layout import layout_in
from personalize.nodes.text.token_view import nearest_words, report, table, token_rows, vectors_in
from personalize.nodes.text.tokens import prompt_tokens
from support.layouts import of_spans, spans_in
from support.prompts_by_hand import END, SIZE, START, positions_by_hand, words_to_ids


def vectors_for(clip, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {e.key: torch.randn(count, e.width, generator=noise) for e in text_encoders(clip)}


def found(clip, prompt: str, words: str) -> tuple[int, ...]:
    return prompt_tokens(clip, prompt).layout.find(words)


@pytest.mark.parametrize("prompt, words, expected", [
    ("a red hat on a dog", "red hat", (2, 3)),
    ("a red hat on a dog", "dog", (6,)),
    ("a red hat on a dog", "hat red", ()),
    ("dogs and a hotdog", "dog", ()),
    ("a Dog, (dog:1.4) and dog!", "DOG", (2, 4, 6)),
    ("a a a", "a a", (1, 2, 3)),
    ("teddy bear's bear", "teddy bear", (1, 2)),
    ("a dog", "", ()),
])
def test_words_are_found_as_whole_tokens(any_checkpoint, prompt, words, expected):
    assert found(any_checkpoint.clip, prompt, words) == expected
    if words:
        assert positions_by_hand(any_checkpoint.clip, prompt, words) == expected


def test_last_piece_of_another_word_is_not_found(sd15):
    """The tokenizer splits hotdogs into hot and dogs."""
    assert positions_by_hand(sd15.clip, "hotdogs and dogs", "dogs") == (4,)
    assert found(sd15.clip, "hotdogs and dogs", "dogs") == (4,)


def test_words_of_long_prompts(sd15):
    prompt = "good " * 73 + "old teddy bear " + "very " * 80 + "teddy bear"
    places = found(sd15.clip, prompt, "teddy bear")
    assert places == positions_by_hand(sd15.clip, prompt, "teddy bear") and len(places) == 4 and places[0] == 75
    assert places[1] == SIZE + 1, "the second word begins the second chunk"


def test_placeholders_and_words_are_spans(any_checkpoint):
    clip = clip_with_vectors(any_checkpoint.clip, {"<my-dog>": vectors_for(any_checkpoint.clip, 3)})
    assert known_placeholders(clip) == {"<my-dog>": 3} and known_placeholders(any_checkpoint.clip) == {}
    layout = prompt_tokens(clip, "a <my-dog> dog in a red hat").layout
    layout = layout.remembering(["dog", "red hat", "cat", "<my-dog>", "<my-dog> dog"])
    assert dict(layout.spans) == {"<my-dog>": (2, 3, 4), "dog": (5,), "red hat": (8, 9), "<my-dog> dog": (2, 3, 4, 5)}


def test_spans_travel_in_the_conditioning_to_the_sampler(sd15, monkeypatch):
    import comfy.samplers

    options = of_spans({"dog": (2,)}).options()
    conditioning = sd15.clip.encode_from_tokens_scheduled(sd15.clip.tokenize("a dog"), add_dict=options)
    plain = nodes.CLIPTextEncode().encode(sd15.clip, "a dog")[0]
    assert spans_in(conditioning[0][1]) == {"dog": (2,)}
    assert layout_in(conditioning[0][1]).length == conditioning[0][0].shape[1] == 77
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    seen, encode_conditions = [], comfy.samplers.encode_model_conds
    monkeypatch.setattr(comfy.samplers, "encode_model_conds",
                        lambda function, conds, *args, **kwargs: (seen.append(conds), encode_conditions(
                            function, conds, *args, **kwargs))[1])
    with torch.inference_mode():
        drawn = [nodes.common_ksampler(sd15.model, 1, 2, 5.0, "euler", "normal", c, plain, latent)[0]["samples"]
                 for c in (conditioning, plain)]
    assert torch.equal(*drawn) and spans_in(seen[0][0]) == {"dog": (2,)}


def test_a_conditioning_with_a_layout_is_saved_by_core(sd15):
    """Save Training Dataset keeps conditionings so, and Load Training Dataset reads plain types alone."""
    clip = clip_with_vectors(sd15.clip, {"<my-dog>": vectors_for(sd15.clip, 2)})
    layout, file = prompt_tokens(clip, "a <my-dog> in a red hat").layout.remembering(["red hat"]), io.BytesIO()
    torch.save(layout.options(), file)
    file.seek(0)
    assert layout_in(torch.load(file, weights_only=True)) == layout


# ------------------------------------------------------------------------------------------------ token view
def test_token_rows(any_checkpoint):
    clip = clip_with_vectors(any_checkpoint.clip, {"<my-dog>": vectors_for(any_checkpoint.clip, 2)})
    rows = token_rows(clip, "a (<my-dog>:1.2) dog in tokyoooo", ["dog"])
    assert [row.position for row in rows] == list(range(77)) and {row.chunk for row in rows} == {0}
    ids = words_to_ids("tokyoooo")
    assert len(ids) > 1
    used = [(row.token, row.id, row.weight, row.role) for row in rows if row.role != "padding"]
    a, dog, in_ = words_to_ids("a dog in")
    assert used[:6] == [("<|startoftext|>", START, 1.0, "start"), ("a", a, 1.0, "context"),
                        ("<my-dog> 1/2", None, 1.2, "<my-dog>"), ("<my-dog> 2/2", None, 1.2, "<my-dog>"),
                        ("dog", dog, 1.0, "class"), ("in", in_, 1.0, "context")]
    assert [row[1] for row in used[6:-1]] == ids and used[-1][3] == "end"
    pieces = [row[0] for row in used[6:-1]]
    assert "".join(piece.removesuffix("-") for piece in pieces) == "tokyoooo"
    assert all(piece.endswith("-") for piece in pieces[:-1]) and not pieces[-1].endswith("-")
    lines = table(rows).split("\n")
    assert len(lines) == 78 and lines[3] == "1\t2\t<my-dog> 1/2\t\t1.2\t<my-dog>"


def test_token_rows_of_long_prompts(sd15):
    rows = token_rows(sd15.clip, "good " * 100, [])
    flat = [token for chunk in sd15.clip.tokenize("good " * 100)["l"] for token, _ in chunk]
    assert [row.id for row in rows] == flat
    assert [row.role for row in rows].count("end") == 2 and rows[77].role == "start" and rows[77].chunk == 1


def test_nearest_words_by_brute_force(any_checkpoint):
    for encoder in text_encoders(any_checkpoint.clip):
        rows = encoder.table.float().numpy().astype(np.float64)[:START]
        (dog,) = words_to_ids("dog")
        noise = vectors_for(any_checkpoint.clip, 2)[encoder.key]
        vectors = {"near dog": 2 * encoder.table[dog].float() + 1e-3 * noise[0], "other": noise[1]}
        for found, vector in zip(nearest_words(encoder, vectors, 9), vectors.values(), strict=True):
            direction = vector.numpy().astype(np.float64)
            cosines = rows @ direction / np.sqrt((rows ** 2).sum(1) * (direction ** 2).sum())
            best = np.argsort(-cosines)[:9]
            assert [cosine for _, cosine in found.words] == pytest.approx(list(cosines[best]), abs=1e-5)
            assert all(words_to_ids(word) == [i] for (word, _), i in zip(found.words, best) if word.isalpha())
            assert found.norm == pytest.approx(np.linalg.norm(direction), rel=1e-5) and found.encoder == encoder.key
            assert found.usual_norm == pytest.approx(np.median(np.linalg.norm(rows, axis=1)), rel=1e-3)
        assert nearest_words(encoder, vectors, 1)[0].words[0][0] == "dog"
        assert nearest_words(encoder, {}, 3) == []


def test_special_tokens_are_no_words(sd15):
    (encoder,) = text_encoders(sd15.clip)
    found = nearest_words(encoder, {"start": encoder.table[START].float(), "end": encoder.table[END].float()}, 50)
    assert not any("<|" in word for each in found for word, _ in each.words)
    assert all(cosine < 0.999 for each in found for _, cosine in each.words)


def test_vectors_of_a_prompt_and_the_report(any_checkpoint):
    plain = any_checkpoint.clip
    dog, style = vectors_for(plain, 2, 1), vectors_for(plain, 1, 2)
    clip = clip_with_vectors(plain, {"<my-dog>": dog})
    prompt = f"<my-dog> and <my-dog>, {prompt_text(save_embedding('view-style', style, {}))}"
    found = vectors_in(clip, prompt)
    for key, by_name in found.items():
        assert list(by_name) == ["<my-dog> 1/2", "<my-dog> 2/2", "file vector 1"]
        assert torch.equal(torch.stack(list(by_name.values())), torch.cat([dog[key], style[key]]))
    near = [n for encoder in text_encoders(clip) for n in nearest_words(encoder, found[encoder.key], 2)]
    shown = report(token_rows(clip, prompt), near)
    assert "<my-dog>: 1, 2, 4, 5" in shown and "Chunk 1: 7 of 75 tokens used" in shown
    assert sum("near to:" in line for line in shown.split("\n")) == 3 * len(found)
