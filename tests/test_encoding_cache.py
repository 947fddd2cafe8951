"""Remembered encodings of prompts: the same objects while there is room, and never more bytes than stated."""
from __future__ import annotations

from dataclasses import replace

import torch

from personalize.nodes.text.encode import Encoded, encode, joined
from personalize.nodes.text.tokens import PromptTokenizer
from personalize.nodes.training import encoding_cache
from personalize.nodes.training.encoding_cache import EncodingCache
from personalize.nodes.training.interfaces import Encode
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.session import training_session
from support.trainings import subject, train

KILOBYTE = 1024


def made(kilobytes: int) -> Encoded:
    half = torch.zeros(kilobytes * KILOBYTE // 8)
    return Encoded((), half.reshape(1, 1, -1), half.reshape(1, -1))


def test_bytes_are_bounded_whatever_the_number(monkeypatch):
    monkeypatch.setattr(encoding_cache, "LARGEST", 10 * KILOBYTE)
    cache, calls = EncodingCache(), []

    def ask(name: str, kilobytes: int) -> Encoded:
        def make(requests) -> list[Encoded]:
            calls.extend(request.tokens[0] for request in requests)
            return [made(kilobytes) for _ in requests]

        return cache.get([Encode((name,))], make)[0]

    first = ask("a", 4)
    assert ask("b", 4) is ask("b", 4) and ask("a", 4) is first and calls == ["a", "b"]
    ask("c", 4)  # 12 KB: b has not been asked for longest
    assert ask("a", 4) is first and calls == ["a", "b", "c"]
    ask("b", 4)
    assert calls == ["a", "b", "c", "b"]
    assert ask("alone too large", 20).cond.numel() > 0
    for number in range(1000):
        ask(str(number), 1)
        kept = sum(encoding_cache.size_in_bytes(each) for each in cache._encodings.values())
        assert kept <= 10 * KILOBYTE
    assert len(cache._encodings) == 10


def test_the_bound_is_what_it_says():
    """A prompt of SDXL is 77 × 2048 numbers and a pooled row of 1280; of SD1.x 77 × 768."""
    assert (
        encoding_cache.LARGEST // (4 * (77 * 2048 + 1280)) >= 400 and encoding_cache.LARGEST // (4 * 77 * 768) >= 1000
    )


def test_each_caption_is_encoded_once(sd15):
    """Ten captioned pictures, four rows a step: the captions of a step that are new are encoded together, and no
    other."""
    plain = subject(10)
    pictures = tuple(replace(p, caption=f"photo {i} of a dog") for i, p in enumerate(plain.pictures))
    encoded = []
    hook = sd15.clip.cond_stage_model.clip_l.register_forward_pre_hook(lambda _, inputs: encoded.append(len(inputs[0])))
    with hook:
        trainer, _, _ = train(sd15, Settings(steps=12, batch_size=4), subjects=(replace(plain, pictures=pictures),),
                              parts=(AdapterPart(rank=1),))
    seen, new = set(), []
    for step in range(1, 13):
        prompts = {row.prompt for row in trainer.plan.recipe.rows(trainer.plan.subjects, step, 4, 0)["subject"]}
        new.append(len(prompts - seen))
        seen |= prompts
    assert len(seen) == 10 and new[0] == 4
    assert encoded == [count for count in new if count]


def test_prompts_encoded_apart_are_those_encoded_together(sdxl):
    long = "a photo of one dog " * 20
    with training_session(sdxl.model, sdxl.clip) as session, torch.no_grad():
        session.load()
        prompts = [PromptTokenizer(session.clip, {})(text) for text in ("a dog", long, "a cat")]
        apart = joined([encode(session.clip, [tokens], [{}]) for tokens in prompts])
        together = encode(session.clip, prompts, [{}] * 3)
    assert apart.tokens == together.tokens and apart.cond.shape[1] == 2 * 77
    torch.testing.assert_close((apart.cond, apart.pooled), (together.cond, together.pooled), rtol=1e-5, atol=1e-6)
