"""Captions and masks made in the page: saved beside the pictures, found again, and never outside of the folder."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from personalize.nodes.training.picture_files import EXAMPLES, folder_contents, folder_fingerprint
from personalize.nodes.training.picture_writing import start_painting, take_painting, write_caption, write_mask
from support import picture_zoo as zoo
from support.drawn_pictures import drawn, encoded
from support.failures import PromptFailed
from support.pictures import sources_from_files

PNG = zoo.saved(zoo.RGB, "PNG")
MASK = np.zeros((zoo.HEIGHT, zoo.WIDTH), np.float32)
MASK[1:3, 2:5] = 1


@pytest.fixture
def picture(folder):
    (folder / "1.png").write_bytes(PNG)
    return folder / "1.png"


def caption() -> str:
    return sources_from_files("dogs", "", 1000)[0].caption


def test_a_caption_goes_into_the_file_that_is_read(folder, picture):
    write_caption("dogs", "1.png", "  a {}\n in a park ")
    assert (caption(), (folder / "1.txt").read_text()) == ("a {} in a park", "a {} in a park")
    (folder / "1.txt").rename(folder / "1.png.caption")
    before = folder_fingerprint("dogs", "")
    write_caption("dogs", "1.png", "another {}")
    assert caption() == "another {}" and not (folder / "1.txt").exists()
    assert folder_fingerprint("dogs", "") != before
    write_caption("dogs", "1.png", "")
    assert caption() == "" and (folder / "1.png.caption").read_bytes() == b""
    assert picture.read_bytes() == PNG


def test_no_caption_makes_no_file(folder, picture):
    write_caption("dogs", "1.png", " ")
    assert [path.name for path in folder.iterdir()] == ["1.png"]


def test_a_mask_beside_a_picture_is_its_mask(folder, picture):
    before = folder_fingerprint("dogs", "")
    assert write_mask("dogs", "1.png", MASK)
    assert folder_fingerprint("dogs", "") != before
    contents = folder_contents("dogs")
    assert [path.name for path in contents.pictures] == ["1.png"] and contents.left_out == {}
    [loaded] = [source.load() for source in sources_from_files("dogs", "", 1000)]
    assert torch.equal(loaded.mask[0], torch.from_numpy(MASK))
    assert not write_mask("dogs", "1.png", 0 * MASK)
    assert [path.name for path in folder.iterdir()] == ["1.png"]


def test_a_mask_replaces_what_is_opaque_and_is_found_for_a_chosen_name(folder):
    (folder / "1.png").write_bytes(encoded(Image.fromarray(np.full((9, 12, 4), 128, np.uint8)), "PNG"))
    Image.fromarray(np.eye(9, 12, dtype=np.uint8) * 255).save(folder / "1-MASKLABEL.PNG")
    for names in ("", "1.png"):
        [source] = sources_from_files("dogs", names, 1000)
        assert torch.equal(source.load().mask[0], torch.eye(9, 12))


def test_a_mask_of_another_size_is_fitted_and_of_another_shape_refused(folder, picture):
    Image.fromarray(np.full((2 * zoo.HEIGHT, 2 * zoo.WIDTH), 255, np.uint8)).save(folder / "1-masklabel.png")
    assert sources_from_files("dogs", "", 1000)[0].load().mask.shape == (1, zoo.HEIGHT, zoo.WIDTH)
    Image.fromarray(np.full((90, 30), 255, np.uint8)).save(folder / "1-masklabel.png")
    with pytest.raises(ValueError, match="1-masklabel.png is 30×90 but its picture is .* another shape; make it anew"):
        sources_from_files("dogs", "", 1000)[0].load()


def test_a_mask_without_a_picture_is_named(folder, picture):
    (folder / "2-masklabel.png").write_bytes(PNG)
    assert folder_contents("dogs").left_out == {"2-masklabel.png": "a mask without a picture"}


def test_what_is_painted_in_the_editor_comes_back_as_mask(base, folder):
    """The editor makes transparent what was painted; the picture that it gets shows the mask there is in that way."""
    (folder / "1.jpg").write_bytes(encoded(drawn("grey", 0, 120, 80)))
    copy = start_painting("dogs", "1.jpg")
    image = Image.open(base / "temp" / copy["subfolder"] / copy["filename"])
    assert (image.mode, image.size, image.getchannel("A").getextrema()) == ("RGBA", (120, 80), (255, 255))
    painted = np.asarray(image).copy()
    painted[10:50, 20:60, 3] = 0
    (base / "input/clipspace").mkdir(exist_ok=True)
    Image.fromarray(painted).save(base / "input/clipspace/painted.png")
    answer = {"filename": "painted.png", "subfolder": "clipspace", "type": "input"}
    assert take_painting("dogs", "1.jpg", answer)
    [loaded] = [source.load() for source in sources_from_files("dogs", "", 1000)]
    assert loaded.mask[0, 10:50, 20:60].min() == 1 and loaded.mask.sum() == 40 * 40
    again = start_painting("dogs", "1.jpg")
    alpha = np.asarray(Image.open(base / "temp" / again["subfolder"] / again["filename"]).getchannel("A"))
    assert np.array_equal(alpha, painted[..., 3])


@pytest.mark.parametrize("painted", [None, {}, {"filename": "a.png", "subfolder": "..", "type": "input"},
                                     {"filename": "/etc/passwd", "subfolder": "", "type": "input"},
                                     {"filename": "a.png", "subfolder": "", "type": "output"}])
def test_a_painting_comes_from_comfyuis_folders_only(picture, painted):
    with pytest.raises(ValueError, match="outside|no picture of ComfyUI's input|cannot be read|no name"):
        take_painting("dogs", "1.png", painted)
    assert len(folder_contents("dogs").masks) == 0


def test_nothing_is_written_outside_of_the_input_folder(base, folder, picture):
    example = next(path for path in EXAMPLES.iterdir() if path.is_dir())
    name = next(path.name for path in sorted(example.iterdir()) if path.suffix == ".jpg")
    before = sorted(path.name for path in example.iterdir())
    with pytest.raises(ValueError, match="example's pictures stay as they are; drop your own"):
        write_caption(example.name, name, "a {}")
    assert sorted(path.name for path in example.iterdir()) == before
    for where, what in (("../output", "1.png"), ("dogs", "../1.png"), ("dogs", str(base / "1.png")), ("dogs", "")):
        with pytest.raises(ValueError):
            write_caption(where, what, "a {}")


def test_a_link_in_the_place_of_a_caption_is_replaced_not_followed(base, folder, picture):
    outside = base / "outside.txt"
    outside.write_text("mine")
    (folder / "1.txt").symlink_to(outside)
    write_caption("dogs", "1.png", "a {}")
    assert outside.read_text() == "mine" and caption() == "a {}"


def test_routes_of_the_tray(server):
    asked = {"folder": "example-toy", "names": ""}
    how = {"size": 512, "fit": "crop", "augmentation": "none"}
    status, answer = server.post("/personalize/pictures/check", asked | how)
    assert status == 200 and set(answer["sizes"]) == {f"toy-{n}.jpg" for n in range(1, 6)}
    assert all(one["sentence"] and set(one["pictures"]) <= set(answer["sizes"]) for one in answer["findings"])
    assert server.post("/personalize/pictures/about", asked) == (200, {"captions": {}, "masks": {}, "message": ""})
    caption = {"folder": "example-toy", "name": "toy-1.jpg", "text": "a"}
    status, answer = server.post("/personalize/pictures/caption", caption)
    assert status == 400 and "stay as they are" in answer["message"]
    for size, fit in (("512", "crop"), (512, "stretch"), (0, "crop"), (10**9, "crop")):
        assert server.post("/personalize/pictures/check", {**asked, "size": size, "fit": fit})[0] == 400
    status, answer = server.post("/personalize/pictures/about", {"folder": "../output", "names": ""})
    assert status == 200 and "outside" in answer["message"]


def save_masks(masks: list, **inputs) -> dict:
    loaders = {f"mask{i}": {"class_type": "LoadImageMask", "inputs": {"image": name, "channel": "red"}}
               for i, name in enumerate(masks)}
    return {**loaders, "save": {"class_type": "PersonalizeSaveMasks", "inputs": {
        "masks": ["mask0", 0], "folder": "dogs", "picture_files": "", **inputs}}}


def test_save_masks_puts_them_where_subject_finds_them_and_again_when_one_is_gone(execute, base, folder, picture):
    Image.fromarray((MASK * 255).astype(np.uint8)).convert("RGB").save(base / "input/white.png")
    for _ in range(2):
        execute(save_masks(["white.png"]))
        [loaded] = [source.load() for source in sources_from_files("dogs", "", 1000)]
        assert torch.equal(loaded.mask[0], torch.from_numpy(MASK))
        (folder / "1-masklabel.png").unlink()


@pytest.mark.parametrize("size, level, sentence", [
    ((90, 30), 255, "is 90×30 but the picture .*another shape"),
    ((zoo.WIDTH, zoo.HEIGHT), 0, "mask for 1.png is empty")])
def test_save_masks_writes_nothing_that_does_not_fit(execute, base, folder, picture, size, level, sentence):
    Image.new("RGB", size, (level,) * 3).save(base / "input/wrong.png")
    with pytest.raises(PromptFailed, match=sentence):
        execute(save_masks(["wrong.png"]))
    (folder / "2.png").write_bytes(PNG)
    with pytest.raises(PromptFailed, match="There are 1 masks for 2 pictures"):
        execute(save_masks(["wrong.png"]))
    assert len(folder_contents("dogs").masks) == 0
