"""The check of a subject's pictures, on pictures that were drawn with known faults."""
from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw

from personalize.nodes.training import picture_check
from personalize.nodes.training.picture_check import SENTENCES, findings, looks_of
from personalize.nodes.training.picture_files import folder_contents, picture_folder
from personalize.nodes.training.picture_look import background_distance, likeness, look_at, parts_of, sharpness
from support.drawn_pictures import BACKGROUNDS, again, blurred, drawn, encoded
from support.page_texts import texts

PLACES = tuple(BACKGROUNDS)


def looked(image: Image.Image, mask=None):
    return look_at(image.convert("RGB"), *image.size, mask)


def found(images, size=256, fit="crop", drawn_crops=False) -> dict[str, list[tuple[str, ...]]]:
    """Code → the pictures of each finding with that code, but for notes."""
    looks = {name: image if isinstance(image, str) else looked(image) for name, image in images.items()}
    codes: dict[str, list] = {}
    for one in findings(looks, size, fit, drawn_crops):
        if one.code not in picture_check.NOTES:
            codes.setdefault(one.code, []).append(one.pictures)
    return codes


def sharpness_by_hand(grey: np.ndarray, tile: int = 32) -> float:
    """The same, pixel by pixel in float64, for a picture that is one row of tiles."""
    height, width = grey.shape

    def at(y, x):
        return float(grey[min(max(y, 0), height - 1), min(max(x, 0), width - 1)])

    def blur(y, x, down, right):
        return sum(at(y + k * down, x + k * right) for k in range(-4, 5)) / 9

    tiles = []
    for left in range(0, width, tile):
        steps = lost = 0.0
        for y, x in itertools.product(range(height), range(left, left + tile)):
            for down, right in ((1, 0), (0, 1)):
                own = abs(at(y, x) - at(y - down, x - right))
                soft = 0.0
                if y * down + x * right:
                    soft = abs(blur(y, x, down, right) - blur(y - down, x - right, down, right))
                steps, lost = steps + own, lost + max(0.0, own - soft)
        tiles.append((steps, lost))
    steps, lost = max(tiles)
    return lost / steps


def test_sharpness_is_what_a_loop_computes():
    grey = np.random.default_rng(0).uniform(0, 255, (32, 64)).astype(np.float32)
    assert sharpness(grey) == pytest.approx(sharpness_by_hand(grey), abs=1e-5)


@pytest.mark.parametrize("pose", range(3))
def test_blur_is_told_from_sharpness_also_behind_a_sharp_subject(pose):
    sharp = drawn("orange", pose)
    mask = np.zeros((480, 640), np.float32)
    mask[100:400, 180:460] = 1
    behind = Image.composite(sharp, blurred(sharp, 6), Image.fromarray((mask * 255).astype(np.uint8)))
    assert found(dict.fromkeys("abc", sharp)).get("blurred") is None
    assert "blurred" not in found({"a": behind})
    assert found({"a": blurred(sharp, 3)})["blurred"] == [("a",)]
    assert found({"a": blurred(sharp, 1)}).get("blurred") is None


def test_nothing_is_said_of_sharpness_where_there_is_nothing_to_see():
    assert looked(Image.new("RGB", (300, 300), "white")).sharpness is None


@pytest.mark.parametrize("pose", range(3))
def test_the_same_picture_is_found_however_it_was_changed(pose):
    first = drawn("green", pose)
    for how, other in again(first).items():
        set_of = {"first": first, "other": other, "strange": drawn("blue", pose + 10)}
        assert found(set_of, size=64)["alike"] == [("first", "other")], how


def test_other_poses_before_one_background_are_other_pictures():
    poses = {str(pose): drawn("orange", pose) for pose in range(8)}
    assert "alike" not in found(poses)


def test_four_of_five_before_one_cloth_are_named_and_five_places_are_not():
    four = {f"{pose}": drawn("orange", pose) for pose in range(4)} | {"other": drawn("blue", 4)}
    assert found(four)["background"] == [("0", "1", "2", "3")]
    assert "background" not in found({place: drawn(place, pose) for pose, place in enumerate(PLACES)})
    two = {f"{place}{pose}": drawn(place, pose) for pose in range(2) for place in ("orange", "green", "grey")}
    assert "background" not in found(two)


def test_backgrounds_shuffled_among_sets_are_no_longer_the_same():
    """What finds a background in every set finds none when each set is dealt one picture of every background."""
    sets = [[drawn(place, pose) for pose in range(5)] for place in PLACES]
    dealt = zip(*sets, strict=True)
    asked = [["background" in found({str(number): image for number, image in enumerate(images)}) for images in group]
             for group in (sets, dealt)]
    assert asked == [[True] * 5, [False] * 5]


def test_with_masks_all_around_the_subject_counts():
    """Pictures whose edges are alike and whose middle is not, but for the subject."""
    def framed(place, pose):
        image = drawn("grey", pose)
        image.paste(drawn(place, pose).crop((90, 90, 550, 390)), (90, 90))
        return image

    mask = np.zeros((480, 640), np.float32)
    mask[180:300, 260:380] = 1
    images = [framed(place, pose) for pose, place in enumerate(("orange", "green", "blue"))]
    for masks, is_same in ((None, True), (mask, False)):
        looks = {str(number): looked(image, masks) for number, image in enumerate(images)}
        assert is_same == any(one.code == "background" for one in findings(looks, 64, "crop"))


def test_size_counts_as_the_fit_makes_it():
    flat = {"a": drawn("grey", 0, 400, 200)}
    assert [("a",)] == found(flat, 256)["small"] == found(flat, 256, "squash")["small"]
    assert "small" not in found(flat, 256, "pad") and "small" not in found(flat, 200)
    small = next(one for one in findings({"a": looked(flat["a"])}, 256, "crop") if one.code == "small")
    assert "a has 400×200 pixels and is enlarged to 256" in small.sentence and "set size to 200" in small.sentence


def test_what_the_crop_cuts_off():
    wide = {"a": drawn("grey", 0, 600, 300)}
    assert found(wide)["cut"] == [("a",)] and "cut" not in found(wide, fit="pad")
    assert "cut" not in found({"a": drawn("grey", 0, 640, 480)})
    mask = np.zeros((300, 600), np.float32)
    mask[:, 100:400] = 1  # a sixth of it is outside of 150…450
    looks = {"a": looked(wide["a"], mask)}
    [cut] = [one for one in findings(looks, 256, "crop") if one.code.startswith("cut")]
    assert (cut.code, cut.values["lost"]) == ("cut_subject", 17)
    assert not [one for one in findings(looks, 256, "crop", drawn=True) if one.code.startswith("cut")]


def test_parts_of_a_mask_are_counted_and_crumbs_are_not():
    mask = Image.new("L", (200, 100))
    pen = ImageDraw.Draw(mask)
    pen.rectangle((10, 10, 60, 90), 255)
    pen.rectangle((60, 40, 90, 50), 255)
    pen.rectangle((195, 95, 199, 99), 255)
    assert parts_of(np.asarray(mask, np.float32) / 255) == 1
    pen.rectangle((120, 10, 160, 90), 255)
    assert parts_of(np.asarray(mask, np.float32) / 255) == 2
    assert parts_of(np.zeros((50, 50), np.float32)) == 0
    looks = {"a": looked(drawn("grey", 0, 200, 100), np.asarray(mask, np.float32) / 255)}
    assert any(one.code == "several" for one in findings(looks, 64, "pad"))


@pytest.mark.parametrize("count, code", [(0, "none"), (1, "few"), (2, "few"), (3, None), (30, None), (31, "many")])
def test_too_few_and_too_many(count, code):
    look = looked(drawn("grey", 0, 64, 64))
    codes = {one.code for one in findings({str(number): look for number in range(count)}, 64, "crop")}
    assert codes & {"none", "few", "many"} == ({code} if code else set())


def test_every_finding_has_a_sentence_that_ends():
    looks = {"a": looked(blurred(drawn("grey", 0, 600, 300), 4)), "b": looked(drawn("grey", 1, 90, 80)),
             "c": "c is broken."}
    for one in findings(looks, 128, "crop"):
        assert one.sentence.endswith(".") and "{" not in one.sentence, one
    codes = {one.code for one in findings(looks, 128, "crop")}
    assert {"cut", "blurred", "small", "unreadable"} <= codes <= set(SENTENCES)


def test_the_page_says_the_same():
    english = texts("en")
    assert {code: english[f"check.{code}"]["other"] for code in SENTENCES} == SENTENCES
    assert all(f"found.{code}" in english for code in SENTENCES)


def test_files_are_measured_once_and_again_when_they_change(folder):
    for pose in range(3):
        (folder / f"{pose}.jpg").write_bytes(encoded(drawn("orange", pose, 1200, 900), quality=90))
    (folder / "broken.png").write_bytes(b"no picture")
    def read():
        return looks_of(folder_contents("dogs"), picture_folder("dogs"), 256)

    picture_check._look.cache_clear()
    looks = read()
    assert isinstance(looks["broken.png"], str) and "broken.png cannot be read" in looks["broken.png"]
    assert (looks["0.jpg"].width, looks["0.jpg"].height) == (1200, 900)
    assert read()["0.jpg"] is looks["0.jpg"] and read()["1.jpg"] is looks["1.jpg"]
    (folder / "1.jpg").write_bytes(encoded(blurred(drawn("orange", 1, 1200, 900), 14), quality=90))
    changed = read()
    assert changed["0.jpg"] is looks["0.jpg"] and changed["1.jpg"] is not looks["1.jpg"]
    assert changed["1.jpg"].sharpness < picture_check.BLURRED < looks["1.jpg"].sharpness


def test_a_turned_photo_is_measured_upright(folder):
    exif = Image.Exif()
    exif[274] = 6
    (folder / "turned.jpg").write_bytes(encoded(drawn("grey", 0, 600, 300), exif=exif))
    [look] = looks_of(folder_contents("dogs"), picture_folder("dogs"), 128).values()
    assert (look.width, look.height) == (300, 600)


def test_thresholds_leave_room_on_both_sides():
    same = [background_distance(looked(drawn("orange", pose)).frame, looked(drawn("orange", pose + 1)).frame)
            for pose in range(3)]
    other = [background_distance(looked(drawn(a, 0)).frame, looked(drawn(b, 1)).frame)
             for a, b in itertools.combinations(PLACES, 2)]
    assert 2 * max(same) < picture_check.SAME_BACKGROUND < min(other) / 2
    pictures = [looked(drawn("orange", pose)).views for pose in range(6)]
    assert max(likeness(a, b) for a, b in itertools.combinations(pictures, 2)) < picture_check.SAME_PICTURE - 0.02
