"""The Subject node in ComfyUI's executor, after stock nodes: batches, lists, masks, chains, errors, caching."""
from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from support.drawn_pictures import drawn
from support.failures import PromptFailed

NAME = "<my-dog>"


class ConceptsForTests:
    """A test-only node: as many concepts as there are names."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("PERSONALIZE_CONCEPT",), "make", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"names": ("STRING", {})}}

    def make(self, names):
        from personalize.nodes.text.concept import Concept

        return (tuple(Concept(name, "dog", "dog") for name in names.split()),)


@pytest.fixture(scope="module", autouse=True)
def concepts_node(execute):
    import nodes

    nodes.NODE_CLASS_MAPPINGS["ConceptsForTests"] = ConceptsForTests
    yield
    del nodes.NODE_CLASS_MAPPINGS["ConceptsForTests"]


@pytest.fixture
def folder(base):
    """A new folder `dogs` in ComfyUI's input folder with pictures of three sizes; the last has transparent parts."""
    path = base / "input" / "dogs"
    path.mkdir()
    for number, (height, width, channels) in enumerate([(64, 64, 3), (70, 90, 3), (130, 66, 4)], 1):
        save(path / f"{number}.png", height, width, channels, seed=number)
    yield path
    shutil.rmtree(path)


def save(path, height: int, width: int, channels: int = 3, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def subject(**inputs) -> dict:
    values = {"concept": ["concept", 0], "folder": "", "size": 64, "fit": "crop", "augmentation": "none", "variants": 3,
              "seed": 0}
    return {"class_type": "PersonalizeSubject", "inputs": {**values, **inputs}}


def prompt(nodes: dict | None = None, **inputs) -> dict:
    return {"concept": {"class_type": "ConceptsForTests", "inputs": {"names": NAME}},
            "subject": subject(**inputs), **(nodes or {})}


GET = {"subjects": ["subject", 0], "pixels": ["subject", 1], "masks": ["subject", 2]}


def load_image(name: str) -> dict:
    return {"class_type": "LoadImage", "inputs": {"image": name}}


def batch(first: str, second: str) -> dict:
    return {"class_type": "ImageBatch", "inputs": {"image1": [first, 0], "image2": [second, 0]}}


# ---------------------------------------------------------------------- where pictures come from
@pytest.mark.smoke
def test_folder(execute, folder):
    (folder / "2.txt").write_text("{} in the garden")
    values = execute(prompt(folder="dogs"), get=GET).values
    [made] = values["subjects"]
    assert made.concept.placeholder == NAME
    assert [picture.name for picture in made.pictures] == ["1.png", "2.png", "3.png"]
    assert [picture.caption for picture in made.pictures] == ["", f"{NAME} in the garden", ""]
    assert [picture.masked for picture in made.pictures] == [False, False, True]
    assert values["pixels"].shape == (3, 64, 64, 3) and values["masks"].shape == (3, 64, 64)
    for i, picture in enumerate(made.pictures):
        [(pixels, mask)] = picture.made()
        assert torch.equal(pixels, values["pixels"][i:i + 1])
        assert torch.equal(torch.ones(1, 64, 64) if mask is None else mask, values["masks"][i:i + 1])
    original = np.asarray(Image.open(folder / "1.png"), dtype=np.float32) / 255
    assert np.abs(next(made.pictures[0].made())[0][0].numpy() - original).max() < 1e-6


def test_example_pictures_need_nothing(execute):
    values = execute(prompt(folder="example-toy", augmentation="flip"), get=GET).values
    assert len(values["subjects"][0].pictures) == 5 and values["pixels"].shape == (10, 64, 64, 3)
    assert torch.equal(values["pixels"][0], values["pixels"][1].flip(1))


def test_chosen_pictures_and_captions(execute, folder):
    values = execute(prompt(folder="dogs", picture_files="3.png\n1.png", captions="{} left\n{} right"), get=GET).values
    assert [(p.name, p.caption) for p in values["subjects"][0].pictures] == [
        ("3.png", f"{NAME} left"), ("1.png", f"{NAME} right")]


def test_what_may_spoil_pictures_that_come_by_a_wire_is_said(execute, base, caplog):
    """The tray shows it of a folder; nothing else could show it of an IMAGE."""
    said = {}
    for places in (("orange", "orange", "orange", "blue"), ("orange", "green", "blue", "white")):
        loaders = {}
        for pose, place in enumerate(places):
            drawn(place, pose).save(base / f"input/{place}{pose}.png")
            loaders[f"load{pose}"] = load_image(f"{place}{pose}.png")
        loaders |= {"two": batch("load0", "load1"), "three": batch("two", "load2"), "all": batch("three", "load3")}
        caplog.clear()
        execute(prompt(loaders, images=["all", 0]), get=GET)
        said[places[1]] = " ".join(record.message for record in caplog.records if record.name == "personalize")
    assert "3 of 4 pictures have the same background (picture 1, picture 2, picture 3)" in said["orange"]
    assert said["green"] == ""


def test_what_is_not_used_of_a_folder_is_said(execute, folder, caplog):
    (folder / "clip.mp4").write_bytes(b"film")
    first, second = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    first.save(folder / "4.gif", save_all=True, append_images=[second])
    made = execute(prompt(folder="dogs"), get=GET).values["pixels"]
    assert len(made) == 4 and made[3, 0, 0].argmax() == 0
    [sentence] = [
        record.message for record in caplog.records if record.name == "personalize" and "clip" in record.message
    ]
    assert sentence == ("Not used from the folder: clip.mp4 (no picture). Note: of 4.gif, which holds several "
                        "pictures, only the first is used.")


def test_as_released_gives_variants(execute, folder):
    values = execute(prompt(folder="dogs", augmentation="as released", variants=4, seed=9), get=GET).values
    assert [picture.count for picture in values["subjects"][0].pictures] == [4, 4, 4]
    assert next(values["subjects"][0].pictures[2].made())[1].shape == (4, 64, 64)
    again = execute(prompt(folder="dogs", augmentation="as released", variants=4, seed=9), get=GET).values
    assert torch.equal(values["pixels"], again["pixels"]) and torch.equal(values["masks"], again["masks"])


def test_list_of_different_sizes(execute, folder):
    """Core's folder loader gives a list; the node must see all of it at once, and the same as from the folder."""
    listed = execute(prompt({"files": {"class_type": "LoadImageDataSetFromFolder", "inputs": {"folder": "dogs"}}},
                            images=["files", 0]), get=GET).values
    direct = execute(prompt(folder="dogs"), get=GET).values
    assert [picture.name for picture in listed["subjects"][0].pictures] == ["picture 1", "picture 2", "picture 3"]
    same = [any(torch.equal(a, b) for b in direct["pixels"][:2]) for a in listed["pixels"]]
    assert sum(same) == 2, "the third has transparent parts, which core's loader drops"


def test_batch_and_list_and_folder_together(execute, folder):
    nodes = {"one": load_image("dogs/1.png"),
             "batch": {"class_type": "RepeatImageBatch", "inputs": {"image": ["one", 0], "amount": 2}}}
    values = execute(prompt(nodes, images=["batch", 0], folder="dogs", picture_files="2.png"), get=GET).values
    names = [picture.name for picture in values["subjects"][0].pictures]
    assert names == ["2.png", "picture 2", "picture 3"]
    assert torch.equal(values["pixels"][1], values["pixels"][2])


def test_mask_follows_its_picture(execute, folder):
    """Load Image's mask is 1 where the file is transparent, so inverted it is the file's own."""
    nodes = {"cut": load_image("dogs/3.png"), "inverted": {"class_type": "InvertMask", "inputs": {"mask": ["cut", 1]}}}
    wired = execute(prompt(nodes, images=["cut", 0], masks=["inverted", 0], augmentation="as released"), get=GET).values
    direct = execute(prompt(folder="dogs", picture_files="3.png", augmentation="as released"), get=GET).values
    assert torch.allclose(wired["masks"], direct["masks"], atol=1e-6) and 0.1 < wired["masks"].mean() < 0.9
    assert not torch.allclose(wired["pixels"], direct["pixels"], atol=0.1), "only the file's own alpha is made grey"


def test_chain(execute, folder):
    nodes = {"other": {"class_type": "ConceptsForTests", "inputs": {"names": "<my-cat>"}},
             "first": subject(concept=["other", 0], folder="dogs", picture_files="2.png")}
    values = execute(prompt(nodes, folder="dogs", previous=["first", 0]), get=GET).values
    assert [(s.concept.placeholder, len(s.pictures)) for s in values["subjects"]] == [("<my-cat>", 1), (NAME, 3)]
    assert len(values["pixels"]) == 3


# ---------------------------------------------------------------------- run again
def test_reruns_exactly_when_a_file_changes(execute, folder):
    session = execute.session()

    def run():
        return session(prompt(folder="dogs"), get=GET)

    first = run().values["pixels"]
    assert "subject" in run().cached
    save(folder / "2.png", 70, 90, seed=77)
    changed = run()
    assert "subject" not in changed.cached and not torch.equal(changed.values["pixels"], first)
    (folder / "2.txt").write_text("{} on grass")
    assert run().values["subjects"][0].pictures[1].caption == f"{NAME} on grass"
    save(folder / "4.png", 64, 64)
    assert len(run().values["pixels"]) == 4
    assert "subject" in run().cached


def test_a_repaired_folder_runs(execute, folder):
    session = execute.session()
    good = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(good[:100])
    with pytest.raises(PromptFailed, match="2.png cannot be read"):
        session(prompt(folder="dogs"), get=GET)
    (folder / "2.png").write_bytes(good)
    assert len(session(prompt(folder="dogs"), get=GET).values["pixels"]) == 3


# ---------------------------------------------------------------------- errors
@pytest.mark.parametrize("inputs, sentence", [
    ({}, "The subject has no pictures; drop 4 or 5 on the node, choose a folder, or connect images."),
    ({"folder": "cats"}, "'cats' is not in ComfyUI's input folder"),
    ({"folder": "../output"}, "lies outside of ComfyUI's input folder"),
    ({"folder": "dogs", "picture_files": "../../output/a.png"}, "lies outside of ComfyUI's input folder"),
    ({"folder": "dogs", "picture_files": "5.png"}, "'5.png' is not in folder 'dogs'"),
    ({"folder": "dogs", "captions": "{} runs"}, "1 captions for 3 pictures"),
    ({"folder": "dogs", "captions": "a dog\n\n"}, "1 captions for 3 pictures"),
    ({"folder": "dogs", "captions": "{} a\n{} b\na dog"}, "caption of 3.png, 'a dog', does not name the subject"),
    ({"images": ["one", 0], "masks": ["white", 0]}, "mask of picture 1 is 90×70 but the picture is 64×64"),
    ({"images": ["one", 0], "masks": ["black", 0]}, "mask of picture 1 is empty"),
    ({"folder": "dogs", "masks": ["white", 0]}, "1 masks for 0 pictures"),
    ({"folder": "dogs", "concept": ["pair", 0]}, "brings 2 concepts but a Subject shows one"),
])
def test_error_is_one_sentence(execute, folder, inputs, sentence):
    nodes = {"one": load_image("dogs/1.png"),
             "pair": {"class_type": "ConceptsForTests", "inputs": {"names": "<a> <b>"}},
             "white": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 90, "height": 70}},
             "black": {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 64, "height": 64}}}
    with pytest.raises(PromptFailed, match=sentence) as failed:
        execute(prompt(nodes, **inputs), get=GET)
    assert failed.value.kind == "error" and failed.value.node_id == "subject"
    assert "\n" not in failed.value.message.strip()


@pytest.mark.parametrize("inputs", [{"size": 32}, {"variants": 0}, {"fit": "stretch"}, {"augmentation": "all"}])
def test_values_out_of_range_are_refused_by_comfyui(execute, folder, inputs):
    with pytest.raises(PromptFailed) as refused:
        execute(prompt(folder="dogs", **inputs), get=GET)
    assert refused.value.kind == "validation"


def test_a_subject_outside_of_the_crop_is_refused_and_pad_keeps_it(execute, folder):
    pixels = np.zeros((64, 300, 4), np.uint8)
    pixels[10:20, 5:15] = 255
    Image.fromarray(pixels).save(folder / "1.png")
    with pytest.raises(PromptFailed, match="Cropping 1.png to its centre leaves nothing of the subject; set"):
        execute(prompt(folder="dogs", picture_files="1.png"), get=GET)
    values = execute(prompt(folder="dogs", picture_files="1.png", fit="pad"), get=GET).values
    assert abs(float(values["masks"].sum()) - 100 * (64 / 300) ** 2) < 0.05


def test_one_picture_is_enough(execute, folder):
    assert execute(prompt(folder="dogs", picture_files="1.png"), get=GET).values["pixels"].shape == (1, 64, 64, 3)
