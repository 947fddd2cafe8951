"""Reading pictures and captions: formats, EXIF turns, transparency, order, bad files, never leaving the folder."""
from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from personalize.nodes.training.images import Loaded, Source, sources_from_tensors, with_captions
from personalize.nodes.training.picture_files import EXAMPLES, folder_choices, folder_fingerprint
from support.pictures import picture_paths, sources_from_files

NAME = "<my-dog>"


def drawing(height: int = 12, width: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, array: np.ndarray, **options) -> np.ndarray:
    Image.fromarray(array).save(path, **options)
    return array


def read(folder: str = "dogs", names: str = "", enough: int = 1000) -> list[Loaded]:
    return [source.load() for source in sources_from_files(folder, names, enough)]


def levels(source: Loaded) -> np.ndarray:
    return (source.pixels.movedim(0, -1) * 255).round().to(torch.uint8).numpy()


# ---------------------------------------------------------------------- formats
STORED = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
          5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
          8: lambda a: np.rot90(a, -1)}


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_turned(folder, orientation, suffix):
    """STORED is how a camera held that way writes an upright scene (EXIF 2.3, tag 274)."""
    upright = np.kron(drawing(3, 5), np.ones((8, 8, 1), np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    options = {"png": {}, "jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}[suffix]
    save(folder / f"turned.{suffix}", np.ascontiguousarray(STORED[orientation](upright)), exif=exif, **options)
    [source] = read()
    assert levels(source).shape == upright.shape
    assert np.abs(levels(source).astype(int) - upright).max() <= (8 if suffix == "jpg" else 0)


def test_exif_turns_the_transparency_too(folder):
    exif = Image.Exif()
    exif[274] = 6
    opaque = np.zeros((6 * 8, 8, 1), np.uint8)
    opaque[:8] = 255
    save(folder / "turned.png", np.concatenate([np.full((48, 8, 3), 200, np.uint8), opaque], axis=-1), exif=exif)
    [source] = read()
    assert source.pixels.shape == (3, 8, 48) and source.mask[0, :, -8:].min() == 1 and source.mask[0, :, :-8].max() == 0


def test_modes_of_files(folder):
    grey = drawing()[..., 0]
    save(folder / "1 grey.png", grey)
    save(folder / "2 deep.png", grey.astype(np.uint16) * 257)
    Image.fromarray(drawing()).convert("CMYK").save(folder / "3 cmyk.tif")
    Image.fromarray(grey > 127).save(folder / "4 bits.png")
    Image.fromarray(grey).save(folder / "5 first of two.gif", save_all=True, append_images=[Image.new("L", (20, 12))])
    sources = read()
    for number in (0, 1, 4):
        assert np.array_equal(levels(sources[number]), np.repeat(grey[..., None], 3, axis=-1)), number
    assert np.array_equal(levels(sources[2]), drawing())
    assert np.array_equal(levels(sources[3])[..., 1], np.where(grey > 127, 255, 0))
    assert all(source.mask is None for source in sources)


def test_transparency_is_flattened_on_grey_and_becomes_the_mask(folder):
    colours, alpha = drawing(), drawing(seed=1)[..., :1]
    save(folder / "a.png", np.concatenate([colours, alpha], axis=-1))
    [source] = read()
    weight = alpha.astype(np.float64) / 255
    expected = colours / 255 * weight + 0.5 * (1 - weight)
    assert np.abs(source.pixels.movedim(0, -1).numpy() - expected).max() < 1e-6
    assert np.abs(source.mask[0].numpy() - weight[..., 0]).max() < 1e-6


def test_palette_transparency_and_opaque_alpha(folder):
    palette = Image.fromarray(np.repeat(np.arange(12, dtype=np.uint8)[:, None] % 2, 20, axis=1), mode="P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(folder / "a.png", transparency=1)
    save(folder / "b.png", np.concatenate([drawing(), np.full((12, 20, 1), 255, np.uint8)], axis=-1))
    cut_out, opaque = read()
    assert cut_out.mask[0, ::2].min() == 1 and cut_out.mask[0, 1::2].max() == 0
    assert np.array_equal(levels(cut_out)[0, 0], [255, 0, 0])
    assert opaque.mask is None


def test_large_pictures_are_read_smaller_by_whole_blocks(folder):
    large = save(folder / "a.png", drawing(96, 144))
    [half] = read(enough=40)
    assert np.abs(levels(half) - large.reshape(48, 2, 72, 2, 3).mean((1, 3))).max() <= 0.5
    [whole] = read(enough=49)
    assert np.array_equal(levels(whole), large)


# ---------------------------------------------------------------------- which files
def test_natural_order_and_choice(folder):
    for name in ("10.jpg", "2.PNG", "1.webp", ".hidden.png", "notes.txt", "9 b.bmp", "9 a.bmp"):
        (folder / name).write_bytes(b"") if name == "notes.txt" else save(folder / name, drawing())
    (folder / "deeper.png").mkdir()
    assert [path.name for path in picture_paths("dogs", "")] == ["1.webp", "2.PNG", "9 a.bmp", "9 b.bmp", "10.jpg"]
    assert [path.name for path in picture_paths("dogs", "10.jpg\n\n 1.webp \n")] == ["10.jpg", "1.webp"]
    assert [path.name for path in picture_paths("", "dogs/2.PNG")] == ["2.PNG"]
    assert picture_paths("", "") == [] and picture_paths("  ", "\n") == []


def test_folders_offered(folder):
    assert folder_choices()[0] == "" and "dogs" in folder_choices()


def test_fingerprint_follows_pictures_and_captions(folder):
    save(folder / "a.png", drawing())
    seen = [folder_fingerprint("dogs", "")]
    save(folder / "a.png", drawing(13))
    seen.append(folder_fingerprint("dogs", ""))
    (folder / "a.txt").write_text("a photo of {}")
    seen.append(folder_fingerprint("dogs", ""))
    save(folder / "b.png", drawing())
    seen.append(folder_fingerprint("dogs", ""))
    os.utime(folder / "b.png", (1, 1))
    seen.append(folder_fingerprint("dogs", ""))
    assert len(set(seen)) == 4 and seen[3] == seen[4], "only touched"


@pytest.mark.parametrize("name", ["../output", "..", "dogs/../../output", "/etc", "\\\\host\\share", "C:\\pictures",
                                  "C:dogs", "..\\output"])
def test_folder_outside_is_refused(folder, name):
    with pytest.raises(ValueError, match="lies outside of ComfyUI's input folder"):
        picture_paths(name, "")
    with pytest.raises(ValueError, match="lies outside of ComfyUI's input folder"):
        picture_paths("dogs", f"{name}/a.png")


def test_links_do_not_lead_outside(folder, base, tmp_path):
    save(tmp_path / "secret.png", drawing())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (base / "input" / "away").symlink_to(tmp_path, target_is_directory=True)
    try:
        for where in ("dogs", "away"):
            with pytest.raises(ValueError, match="lies outside"):
                picture_paths(where, "")
    finally:
        (base / "input" / "away").unlink()


def test_a_folder_through_a_linked_input_folder_is_inside(folder, base, monkeypatch, tmp_path):
    import folder_paths

    save(folder / "a.png", drawing())
    (tmp_path / "linked").symlink_to(base / "input", target_is_directory=True)
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "linked"))
    assert [path.name for path in picture_paths("dogs", "")] == ["a.png"]


def test_examples_of_the_pack_are_found_but_the_input_folder_goes_first(base):
    example = next(path for path in sorted(EXAMPLES.iterdir()) if path.is_dir())
    assert example.name in folder_choices()
    assert picture_paths(example.name, "")[0].parent == example
    own = base / "input" / example.name
    own.mkdir()
    try:
        save(own / "mine.png", drawing())
        assert [path.name for path in picture_paths(example.name, "")] == ["mine.png"]
    finally:
        shutil.rmtree(own)


# ---------------------------------------------------------------------- bad files
def test_missing_and_empty(folder):
    with pytest.raises(ValueError, match="'dogs' holds no pictures"):
        read()
    with pytest.raises(ValueError, match="'cats' is not in ComfyUI's input folder"):
        read("cats")
    with pytest.raises(ValueError, match="'gone.png' is not in folder 'dogs'"):
        read(names="gone.png")


def broken(kind: str) -> tuple[str, bytes]:
    good = Image.fromarray(drawing(64, 64))
    if kind == "empty":
        return "bad.png", b""
    if kind == "text":
        return "bad.jpg", b"no picture at all"
    if kind == "heic":
        return "bad.heic", b"\x00\x00\x00\x18ftypheic" + bytes(100)
    from io import BytesIO

    for suffix in ("png", "jpeg"):
        if kind == f"cut {suffix}":
            data = BytesIO()
            good.save(data, suffix)
            return f"bad.{suffix}", data.getvalue()[:len(data.getvalue()) // 2]
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["empty", "text", "heic", "cut png", "cut jpeg"])
def test_one_corrupt_among_good_is_named(folder, kind):
    save(folder / "a.png", drawing())
    save(folder / "z.png", drawing())
    name, data = broken(kind)
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"^{name} cannot be read as a picture .*remove it") as refused:
        read()
    assert "\n" not in str(refused.value)
    assert (folder / name).read_bytes() == data and len(list(folder.iterdir())) == 3


def test_small_and_invisible(folder):
    save(folder / "tiny.png", drawing(7, 300))
    with pytest.raises(ValueError, match="tiny.png is 300×7 pixels; .* at least 8"):
        read()
    save(folder / "tiny.png", drawing(8, 8))
    assert len(read()) == 1
    save(folder / "tiny.png", np.zeros((9, 9, 4), np.uint8))
    with pytest.raises(ValueError, match="mask of tiny.png is empty"):
        read()


# ---------------------------------------------------------------------- wires
def test_batches_lists_and_masks_keep_their_order():
    images = [torch.rand(2, 10, 12, 3), torch.rand(1, 30, 9, 3), torch.rand(8, 8, 3)]
    masks = [torch.rand(2, 10, 12), torch.rand(1, 1, 30, 9), torch.rand(8, 8)]
    sources = sources_from_tensors(images, masks, first_number=3)
    assert [source.name for source in sources] == ["picture 3", "picture 4", "picture 5", "picture 6"]
    expected = [(images[0][0], masks[0][0]), (images[0][1], masks[0][1]), (images[1][0], masks[1][0, 0]),
                (images[2], masks[2])]
    for source, (image, mask) in zip([source.load() for source in sources], expected, strict=True):
        assert torch.equal(source.pixels.movedim(0, -1), image) and torch.equal(source.mask[0], mask)


def test_fourth_channel_is_a_mask_unless_there_are_masks():
    image = torch.rand(1, 9, 9, 4)
    source = sources_from_tensors([image], [])[0].load()
    assert torch.equal(source.mask[0], image[0, ..., 3])
    assert torch.allclose(source.pixels[1], image[0, ..., 1] * image[0, ..., 3] + 0.5 * (1 - image[0, ..., 3]))
    source = sources_from_tensors([image], [torch.ones(1, 9, 9)])[0].load()
    assert source.mask.min() == 1


@pytest.mark.parametrize("images, masks, sentence", [
    ([torch.rand(2, 9, 9, 3)], [torch.ones(1, 9, 9)], "1 masks for 2 pictures"),
    ([], [torch.ones(1, 9, 9)], "1 masks for 0 pictures"),
    ([torch.rand(1, 9, 9, 3)], [torch.zeros(1, 64, 64)], "mask of picture 1 is 64×64 but the picture is 9×9.*Load I"),
    ([torch.rand(1, 9, 9, 3)], [torch.zeros(1, 9, 9)], "mask of picture 1 is empty"),
    ([torch.rand(1, 9, 7, 3)], [], "picture 1 is 7×9 pixels"),
    ([torch.rand(1, 9, 9, 1)], [], "picture 1 has 1 channels"),
    ([torch.full((1, 9, 9, 3), float("nan"))], [], "picture 1 holds values that are not numbers"),
])
def test_bad_images_and_masks(images, masks, sentence):
    with pytest.raises(ValueError, match=sentence) as refused:
        for source in sources_from_tensors(images, masks):
            source.load()
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------------- captions
def sources() -> list[Source]:
    return sources_from_files("dogs", "", enough=1000)


def captions(sources, *texts: str) -> list[str]:
    return [source.caption for source in with_captions(sources, texts, NAME)]


def test_captions_beside_the_pictures(folder):
    for name in "abc":
        save(folder / f"{name}.png", drawing())
    (folder / "a.txt").write_text("a photo of <my-dog>\n on grass\n", encoding="utf-8-sig")
    (folder / "c.txt").write_text("ein {} über dem Zaun", encoding="utf-8")
    assert captions(sources(), "") == ["a photo of <my-dog> on grass", "", "ein <my-dog> über dem Zaun"]
    assert captions(sources(), "{}\n{} sits\n{} runs") == ["<my-dog>", "<my-dog> sits", "<my-dog> runs"]


def test_captions_as_lines_and_as_a_list(folder):
    for name in "abc":
        save(folder / f"{name}.png", drawing())
    assert captions(sources(), "{} one\n\n{} three\n\n") == ["<my-dog> one", "", "<my-dog> three"]
    assert captions(sources(), "\n\n{} three") == ["", "", "<my-dog> three"]
    assert captions(sources(), "{}\none", "", "{} three") == ["<my-dog> one", "", "<my-dog> three"]


@pytest.mark.parametrize("text, sentence", [
    ("{} one\n{} two\n{} three", "3 captions for 2 pictures"), ("{} one", "1 captions for 2 pictures"),
    ("{} one\na dog", "caption of b.png, 'a dog', does not name the subject; write <my-dog> or {}")])
def test_bad_captions(folder, text, sentence):
    for name in "ab":
        save(folder / f"{name}.png", drawing())
    with pytest.raises(ValueError, match=sentence):
        captions(sources(), text)


def test_caption_file_that_is_no_text(folder):
    save(folder / "a.png", drawing())
    (folder / "a.txt").write_bytes(b"\xff\xfe\x00d")
    with pytest.raises(ValueError, match="a.txt is not a text file in UTF-8"):
        read()
