"""What a DETEX training leaves: stock files, words of new pictures, and prompts that keep a pose or a background."""
from __future__ import annotations

import io
from pathlib import Path

import folder_paths
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from personalize.nodes.papers.detex.files import read_about, read_detex, read_thumbnails
from personalize.nodes.papers.detex.nodes_apply import PersonalizeDetexEncodePicture, PersonalizeDetexPrompt
from personalize.nodes.papers.detex.words import attribute_word
from personalize.nodes.text.apply import apply_concepts
from personalize.nodes.text.concept_files import load_concept
from personalize.nodes.text.encode import encode
from personalize.nodes.text.tokens import PromptTokenizer
from personalize.nodes.training.job import folder_of
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.run_key import run_key
from personalize.nodes.training.validation import Validation
from support.detex_training import WORD, method
from support.trainings import make_job, run
from tiny import vision

pytestmark = pytest.mark.usefixtures("execute")  # the server object that runs report to

STEPS = 2
PROMPT = "Photo of a {} on the beach"


def detex_job(checkpoint, name: str, mapped: bool = True, **changes):
    return make_job(checkpoint, name, **{**method(mapped, rate=1e-2), "settings": Settings(STEPS, batch_size=3),
                                         **changes})


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def trained(request, _shared_checkpoints):
    """(job, outcome, name of the DETEX file) of two steps."""
    job = detex_job(_shared_checkpoints(request.param).loaded, f"detex-{request.param}")
    outcome = run(job)
    return job, outcome, f"{folder_of(job).run}/attributes-{STEPS:06d}.safetensors"


def embedding(job, word: str) -> Path:
    stem = word.strip("<>")
    return Path(folder_paths.get_full_path("embeddings", f"{folder_of(job).run}/{stem}-{STEPS:06d}.safetensors") or "")


def file_of(name: str) -> Path:
    return Path(folder_paths.get_full_path("detex", name))


def words() -> list[str]:
    return [attribute_word(WORD, attribute, i) for attribute in ("pose", "background") for i in (1, 2, 3)]


# ------------------------------------------------------------------------------------------------ files
def test_every_word_is_a_stock_embedding_and_the_model_s_change_a_stock_lora(trained):
    job, outcome, name = trained
    assert all(embedding(job, word).is_file() for word in (WORD, *words()))
    detex = read_detex(file_of(name))
    assert detex.subjects[0].placeholder == WORD and detex.subjects[0].pictures == 3 and detex.step == STEPS
    saved = [load_file(embedding(job, word)) for word in words()]
    assert all(tensor.dtype == torch.float32 and tensor.shape[0] == 1 for each in saved for tensor in each.values())
    assert len({tuple(each["clip_l"].flatten().tolist()) for each in saved}) == 6
    assert {key.rpartition(".")[2] for key in outcome.weights} == {"diff"}


def test_stock_nodes_encode_the_words_as_the_training_did(trained):
    """`embedding:` of the files to the bit as the training encodes their vectors, and as a CLIP that is taught them;
    the mappers make them of the training picture again."""
    job, outcome, name = trained
    clip, pixels = job.clip, job.subjects[0].pictures[1].photograph(1024)[None]
    pose, background = PersonalizeDetexEncodePicture.execute(name, vision.load(), pixels, "new").result
    assert [concept.placeholder for concept, in (pose, background)] == ["<new-pose>", "<new-background>"]
    for concept, word in ((pose[0], words()[1]), (background[0], words()[4])):
        for key, rows in load_file(embedding(job, word)).items():
            torch.testing.assert_close(concept.vectors[key], rows, rtol=1e-4, atol=1e-6)
    said = PersonalizeDetexPrompt.execute(name, PROMPT, 2, 2, "").result[0]
    with torch.inference_mode():
        stock = clip.encode_from_tokens(clip.tokenize(said))
        learned = [outcome.concepts[0], *(load_concept(embedding(job, word), word) for word in (words()[1],
                                                                                                words()[4]))]
        vectors = {concept.placeholder: dict(concept.vectors) for concept in learned}
        prompt = ("Photo of a <my-dog> dog with <my-dog-pose-2> pose in <my-dog-background-2> background on the "
                  "beach")
        tokens = PromptTokenizer(clip, dict.fromkeys(vectors, 1))(prompt)
        own = encode(clip, [tokens], [vectors])
        taught = apply_concepts(clip, learned)
        applied = taught.encode_from_tokens(taught.tokenize(prompt))
    assert torch.equal(stock, own.cond) and torch.equal(stock, applied)


def test_the_file_shows_the_training_pictures(trained):
    job, _, name = trained
    shown = read_thumbnails(file_of(name))
    assert len(shown) == 3
    for jpeg, picture in zip(shown, job.subjects[0].pictures, strict=True):
        pixels = torch.tensor(list(Image.open(io.BytesIO(jpeg)).convert("RGB").getdata())).float() / 255
        assert (pixels.mean(0) - picture.photograph(160).reshape(-1, 3).mean(0)).abs().max() < 0.03


def test_previews_show_the_mapped_words(sd15):
    """A validation prompt with a picture's word draws another picture than with another's."""
    drawn = []
    for number in (1, 2):
        validation = Validation((f"a {{}} with {attribute_word(WORD, 'pose', number)} pose",), share=1e9)
        job = detex_job(sd15, f"detex-previews-{number}", validation=validation, preview_every=2)
        report = run(job).report
        entry = next(each for each in report["previews"] if each["step"] == STEPS)
        drawn.append(Image.open(folder_of(job).path / entry["image"]["filename"]).convert("RGB").tobytes())
    assert drawn[0] != drawn[1]


def test_without_mappers_words_are_kept_and_new_pictures_refused(sd15):
    job = detex_job(sd15, "detex-vectors", mapped=False)
    run(job)
    name = f"{folder_of(job).run}/attributes-{STEPS:06d}.safetensors"
    assert not read_detex(file_of(name)).mappers and all(embedding(job, word).is_file() for word in words())
    with pytest.raises(ValueError, match="trained without mappers, so that it knows no other pictures"):
        PersonalizeDetexEncodePicture.execute(name, vision.load(), torch.rand(1, 32, 32, 3), "new")


def test_a_run_is_named_by_what_the_image_encoder_is(sd15):
    keys = []
    for encoder in (vision.load(), vision.load(), vision.load(seed=1)):
        keys.append(run_key(detex_job(sd15, "key", parts=method(clip_vision=encoder)["parts"])))
    assert keys[0] == keys[1] != keys[2]


# ------------------------------------------------------------------------------------------------ prompts
@pytest.mark.parametrize("pose, background, subject, said", [
    (0, 0, "", "Photo of a {word} dog on the beach"),
    (2, 0, "", "Photo of a {word} dog with {pose} pose on the beach"),
    (0, 3, "", "Photo of a {word} dog in {background} background on the beach"),
    (2, 3, "cat", "Photo of a cat with {pose} pose in {background} background on the beach")])
def test_a_prompt_keeps_what_is_chosen(trained, pose, background, subject, said):
    job, _, name = trained
    at = f"embedding:{folder_of(job).run}/"
    expected = said.format(word=f"{at}my-dog-{STEPS:06d}", pose=f"{at}my-dog-pose-2-{STEPS:06d}",
                           background=f"{at}my-dog-background-3-{STEPS:06d}")
    assert PersonalizeDetexPrompt.execute(name, PROMPT, pose, background, subject).result[0] == expected


def test_a_prompt_says_what_is_wrong(trained):
    job, _, name = trained
    with pytest.raises(ValueError, match="prompt has 0 slots; write exactly one {}"):
        PersonalizeDetexPrompt.execute(name, "a dog", 1, 0, "")
    with pytest.raises(ValueError, match="There is no picture 4 in .*, which was learned from 3"):
        PersonalizeDetexPrompt.execute(name, PROMPT, 4, 0, "")
    away = embedding(job, words()[0])
    kept = away.rename(away.with_suffix(".away"))
    try:
        with pytest.raises(ValueError, match="There is no embedding '.*my-dog-pose-1-000002'"):
            PersonalizeDetexPrompt.execute(name, PROMPT, 1, 0, "")
    finally:
        kept.rename(away)


# ------------------------------------------------------------------------------------------------ refusals
def test_new_pictures_need_the_encoder_of_the_training(trained):
    _, _, name = trained
    with pytest.raises(ValueError, match="another image encoder than this clip_vision"):
        PersonalizeDetexEncodePicture.execute(name, vision.load(seed=1), torch.rand(1, 32, 32, 3), "new")
    with pytest.raises(ValueError, match="image holds 2 pictures"):
        PersonalizeDetexEncodePicture.execute(name, vision.load(), torch.rand(2, 32, 32, 3), "new")
    with pytest.raises(ValueError, match="clip_vision is missing"):
        PersonalizeDetexEncodePicture.execute(name, None, torch.rand(1, 32, 32, 3), "new")


@pytest.mark.parametrize("change, sentence", [
    (lambda tensors, about: ({"a": torch.ones(1)}, {}), "is no file of DETEX"),
    (lambda tensors, about: (tensors, {**about, "subjects": "[]"}), "damaged or no DETEX file"),
    (lambda tensors, about: (tensors, {**about, "step": "two"}), "damaged or no DETEX file"),
    (lambda tensors, about: ({k: v for k, v in tensors.items() if k != "pose.clip_l.second.bias"}, about), "damaged"),
    (lambda tensors, about: ({k: v for k, v in tensors.items() if not k.startswith("background.")}, about), "damaged"),
    (lambda tensors, about: ({**tensors, "pose.clip_l.third.bias": tensors["pose.clip_l.third.bias"] * torch.nan},
                             about), "not numbers"),
    (lambda tensors, about: ({**tensors, "pose.clip_l.first.weight": tensors["pose.clip_l.first.weight"][:, 1:].clone()
                              .reshape(-1)}, about), "damaged"),
])
def test_files_that_are_none_are_refused(trained, tmp_path, change, sentence):
    _, _, name = trained
    with safe_open(file_of(name), "pt") as file:
        about = file.metadata()
    tensors, about = change(load_file(file_of(name)), about)
    path = tmp_path / "attributes.safetensors"
    save_file(tensors, path, about)
    with pytest.raises(ValueError, match=sentence):
        read_detex(path)


def test_thumbnails_that_are_missing_are_a_damaged_file(trained, tmp_path):
    _, _, name = trained
    with safe_open(file_of(name), "pt") as file:
        about = file.metadata()
    path = tmp_path / "attributes.safetensors"
    save_file({k: v for k, v in load_file(file_of(name)).items() if k != "thumbnail.2"}, path, about)
    assert read_about(path).subjects[0].pictures == 3
    with pytest.raises(ValueError, match="damaged or no DETEX file"):
        read_thumbnails(path)
