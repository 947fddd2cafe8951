"""Pictures of a class that the model draws: once, found again, and lost by no interruption or full disk."""
from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.samplers
import numpy as np
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from PIL import Image

from personalize.nodes.files import NotWritten
from personalize.nodes.training.class_pictures import Artist, Drawing, class_pictures, gone_pictures
from personalize.nodes.training.nodes_prior import PersonalizePriorPictures
from personalize.nodes.training.seeds import generator
from support.faults import failing_writes
from support.trainings import subject

HOW = Drawing(64, seed=3, steps=1)
DOG = "a photo of a dog"


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path / "personalize" / "class-pictures"


@pytest.fixture
def draws(monkeypatch):
    """Seeds of what was sampled; the one whose number is in `stop_at` is interrupted, as by Cancel."""
    made, sample = [], comfy.sample.sample

    def counted(*given, **more):
        if len(made) == counted.stop_at:
            comfy.model_management.interrupt_current_processing()
        made.append(more["seed"])
        return sample(*given, **more)

    counted.stop_at = -1
    monkeypatch.setattr(comfy.sample, "sample", counted)
    yield made, counted
    comfy.model_management.interrupt_current_processing(False)


def draw(checkpoint, prompts, how=HOW, progress=lambda number: None):
    with torch.inference_mode():
        return class_pictures(Artist(*checkpoint), prompts, how, progress)


def content(paths):
    return [path.read_bytes() for path in paths]


def node(checkpoint=((), (), ()), captions="a photo of a {}", count=3, images=()):
    model, clip, vae = ([part] if part else () for part in checkpoint)
    with torch.inference_mode():
        made = PersonalizePriorPictures.execute([(subject(),)], [captions], [1], [1.0], images, model, clip, vae,
                                                [count], [3], [1], [0.0])
    return made.args[0][-1].prior


def test_they_are_what_comfyui_s_sampler_draws(sd15, output):
    paths = draw(sd15, [DOG, DOG], Drawing(64, 3, 4, 5.0))
    model, clip, vae = sd15
    for number, path in enumerate(paths, 1):
        noise = torch.randn(1, 4, 8, 8, generator=generator(3, "class picture", number))
        with torch.inference_mode():
            positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (DOG, ""))
            sampler = comfy.samplers.KSampler(model, 4, model.load_device, "euler", "normal", 1.0, model.model_options)
            latent = sampler.sample(noise, positive, negative, 5.0, torch.zeros_like(noise), seed=3, disable_pbar=True)
            expected = (vae.decode(latent)[0].clamp(0, 1) * 255).round().byte().cpu().numpy()
        assert np.array_equal(np.asarray(Image.open(path)), expected) and expected.std() > 1
    assert paths[0].read_bytes() != paths[1].read_bytes()


def test_they_are_found_again_and_more_of_them_go_on(sd15, output, draws):
    made, told = draws[0], []
    first = draw(sd15, [DOG] * 2, progress=told.append)
    before = content(first)
    assert len(made) == 2 and told == [0, 1, 2]
    more = draw(sd15, [DOG] * 3, progress=told.append)
    assert more[:2] == first and content(more)[:2] == before and len(made) == 3 and told[3:] == [2, 3]
    assert draw(sd15, [DOG] * 2) == first and len(made) == 3
    mixed = draw(sd15, [DOG, "a dog", DOG])
    assert mixed[::2] == first and mixed[1].parent != first[0].parent and len(made) == 4


@pytest.mark.parametrize("how", [Drawing(72, 3, 1), Drawing(64, 4, 1), Drawing(64, 3, 2), Drawing(64, 3, 1, 2.0)])
def test_what_they_depend_on_makes_others(sd15, output, draws, how):
    plain, (other,) = draw(sd15, [DOG]), draw(sd15, [DOG], how)
    assert other.parent != plain[0].parent and len(draws[0]) == 2
    assert Image.open(other).size == (how.size, how.size)


def test_another_model_makes_others(sd15, sd21, output):
    assert draw(sd15, [DOG])[0].parent != draw(sd21, [DOG])[0].parent


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"no picture"),
                                   lambda path: path.write_bytes(path.read_bytes()[:-500]),
                                   lambda path: Image.new("RGB", (32, 32)).save(path)],
                         ids=["gone", "no picture", "cut off", "another size"])
def test_what_cannot_be_read_is_drawn_anew(sd15, output, draws, spoil):
    paths = draw(sd15, [DOG] * 2)
    before = content(paths)
    spoil(paths[1])
    assert gone_pictures() == ([] if paths[1].exists() else [str(paths[1])])
    assert content(draw(sd15, [DOG] * 2)) == before and len(draws[0]) == 3 and not gone_pictures()


def test_an_interruption_loses_nothing(sd15, output, draws):
    made, counted = draws
    counted.stop_at = 2
    with pytest.raises(InterruptProcessingException):
        draw(sd15, [DOG] * 4)
    kept = sorted(output.rglob("*.*"))
    assert [path.name for path in kept] == ["00001.png", "00002.png"]
    before = content(kept)
    counted.stop_at = -1
    assert content(draw(sd15, [DOG] * 4))[:2] == before and len(made) == 5


def test_a_full_disk_is_one_sentence_and_leaves_whole_pictures(sd15, output):
    with failing_writes(lambda number, path: number == 2), pytest.raises(NotWritten) as error:
        draw(sd15, [DOG] * 3)
    assert str(error.value).count(". ") == 1 and "No space left" in str(error.value) and "00003.png" in str(error.value)
    assert sorted(path.name for path in output.rglob("*") if path.is_file()) == ["00001.png", "00002.png"]
    assert len(draw(sd15, [DOG] * 3)) == 3


# ------------------------------------------------------------------------------------------------ node
def test_the_node_draws_the_class_with_its_prompts_in_turn(sd15, output):
    prior = node(sd15, "a photo of a {}\n{} at night")
    assert [picture.caption for picture in prior.pictures] == [DOG, "dog at night", DOG]
    assert [picture.size for picture in prior.pictures] == [(64, 64)] * 3
    pixels = [next(picture.made())[0][0] for picture in prior.pictures]
    files = [path for prompt in ("a-photo", "dog") for path in sorted(output.glob(f"{prompt}*/*"))]
    assert torch.equal(pixels[2], torch.from_numpy(np.asarray(Image.open(files[1])).copy()).float() / 255)
    again = node(sd15, "a photo of a {}\n{} at night")
    assert [one.content for one in prior.pictures] == [one.content for one in again.pictures]


def test_own_pictures_are_not_drawn(sd15, output, draws, caplog):
    prior = node(sd15, images=[torch.rand(2, 64, 64, 3)])
    assert len(prior.pictures) == 2 and not draws[0] and "nothing is drawn" in caplog.text


@pytest.mark.parametrize("captions, count, parts, sentence", [
    (DOG, 3, (0, 0, 0), r"connect images, or model, clip and vae .* \(model and clip and vae are missing\)"),
    (DOG, 3, (1, 1, 0), r"\(vae is missing\)"),
    ("a {}\ntwo {}", 1, (1, 1, 1), "There are 2 captions for 1 pictures to draw"),
    ("", 3, (1, 1, 1), "There are 0 captions for 3 pictures to draw; write at least one line")])
def test_what_cannot_be_drawn_is_said(sd15, output, captions, count, parts, sentence):
    with pytest.raises(ValueError, match=sentence):
        node([part if has else None for part, has in zip(sd15, parts, strict=True)], captions, count)
