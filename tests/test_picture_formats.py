"""Whatever file Load Image reads, Subject reads to the same pixels; where Load Image loses the picture, to the right
ones."""
from __future__ import annotations

import shutil

import nodes
import numpy as np
import pytest
import torch
from PIL import Image

from personalize.nodes.training.images import Loaded
from support import picture_zoo as zoo
from support.pictures import sources_from_files

SIXTEEN_GREY_BITS = "grey 16"
ROUNDING = 2.5 / 255
"""Load Image's newer decoder is off by up to 1.6 levels of 255 where Pillow is exact, 1 of them in the opacity."""


@pytest.fixture
def folder(base):
    """A new folder `zoo` in ComfyUI's input folder."""
    path = base / "input" / "zoo"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def read(name: str) -> Loaded:
    return sources_from_files("zoo", name, enough=1000)[0].load()


def by_load_image(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) as Subject shows what Load Image gives, grey where it is transparent, and its opacity (H, W)."""
    images, masks = nodes.LoadImage().load_image(f"zoo/{name}")
    image, opacity = images[0].double(), 1 - masks[0].double()
    if opacity.shape != image.shape[:2]:  # 64×64: the file has no opacity
        opacity = torch.ones(image.shape[:2], dtype=torch.float64)
    return (image * opacity[..., None] + 0.5 * (1 - opacity[..., None])).numpy(), opacity.numpy()


@pytest.mark.newer  # before, Load Image took a PNG with one clear colour for opaque
def test_one_clear_colour_as_load_image(folder):
    check_as_load_image(folder, {"a.png": zoo.saved(zoo.RGB, "PNG", transparency=(0, 0, 0))})
    assert read("a.png").mask is not None


def test_every_exact_format_as_load_image(folder):
    check_as_load_image(folder, {name: file
                                 for name, file in zoo.exact().items() if not name.startswith(SIXTEEN_GREY_BITS)})


@pytest.mark.newer  # before, Load Image made all but the darkest of them white
def test_sixteen_grey_bits_as_load_image(folder):
    check_as_load_image(folder, {name: file
                                 for name, file in zoo.exact().items() if name.startswith(SIXTEEN_GREY_BITS)})


def check_as_load_image(folder, files: dict[str, bytes]) -> None:
    zoo.write(folder, files)
    for name in files:
        loaded, (image, opacity) = read(name), by_load_image(name)
        assert loaded.pixels.shape[1:] == image.shape[:2], name
        assert np.abs(loaded.pixels.movedim(0, -1).numpy() - image).max() < ROUNDING, name
        mask = np.ones_like(opacity) if loaded.mask is None else loaded.mask[0].numpy()
        assert np.abs(mask - opacity).max() < ROUNDING, name


def test_every_jpeg_exactly_as_load_image(folder):
    """Decoders spread the colours of 4:2:0 differently: another one is off by 80 levels of 255 at hard edges."""
    zoo.write(folder, zoo.lossy())
    for name in zoo.lossy():
        loaded, (image, _) = read(name), by_load_image(name)
        assert loaded.mask is None and np.array_equal(loaded.pixels.movedim(0, -1).numpy(), image), name


def test_a_folder_of_all_of_them_is_read_whole(folder):
    files = zoo.exact() | zoo.lossy()
    zoo.write(folder, files)
    assert {source.name for source in sources_from_files("zoo", "", 1000)} == set(files)


@pytest.mark.parametrize("kind", ["tga", "ico", "jp2", "qoi", "dds", "avif"])
def test_formats_that_load_image_may_not_read(folder, kind):
    """Load Image refuses icons and takes an AVIF's transparent parts for opaque."""
    square = zoo.RGBA.crop((0, 0, 24, 24))
    square.save(folder / f"a.{kind}", **({"sizes": [(24, 24)]} if kind == "ico" else {}))
    loaded = read(f"a.{kind}")
    expected = np.asarray(Image.open(folder / f"a.{kind}").convert("RGBA"), dtype=float) / 255
    assert np.abs(loaded.mask[0].numpy() - expected[..., 3]).max() < 1e-6 and loaded.mask.min() == 0
    shown = expected[..., :3] * expected[..., 3:] + 0.5 * (1 - expected[..., 3:])
    assert np.abs(loaded.pixels.movedim(0, -1).numpy() - shown).max() < 1e-6


# ---------------------------------------------------------------------- where Load Image loses the picture
LEVELS = zoo.GREY.astype(np.float64) / 255


@pytest.mark.parametrize("stored", [
    zoo.GREY.astype(np.int32), zoo.GREY.astype(np.uint32), zoo.GREY.astype(np.int32) * 257,
    (LEVELS * (2**31 - 1)).astype(np.int32), (LEVELS * (2**32 - 1)).astype(np.uint32), zoo.GREY.astype(np.int16) * 128,
    (zoo.GREY.astype(np.int32) * 257 - 2**15).astype(np.int16), LEVELS.astype(np.float32), zoo.GREY.astype(np.float32),
    (LEVELS * 65535).astype(np.float32)], ids=lambda stored: f"{stored.dtype} to {stored.max()}")
def test_deep_grey_tiff_is_neither_black_nor_white(folder, stored):
    (folder / "a.tif").write_bytes(zoo.tiff(stored))
    low = min(0, stored.min())
    full = next(full for full in (1, 255, 65535, 2**31 - 1, 2**32 - 1)
                if float(stored.max()) - low <= full and (full > 1 or stored.dtype.kind == "f"))
    for channel in read("a.tif").pixels.numpy():
        assert np.abs(channel - (stored.astype(np.float64) - low) / full).max() < 1e-6


def test_a_deep_picture_is_read_smaller_too(folder):
    levels = np.random.default_rng(0).integers(0, 65536, (96, 144), dtype=np.uint16)
    (folder / "a.tif").write_bytes(zoo.tiff(levels))
    half = sources_from_files("zoo", "", enough=40)[0].load().pixels
    assert np.abs(half[0].numpy() - levels.reshape(48, 2, 72, 2).mean((1, 3)) / 65535).max() < 1e-6


def test_floating_point_that_is_no_number_is_named(folder):
    (folder / "a.tif").write_bytes(zoo.tiff(np.full((9, 9), np.nan, np.float32)))
    with pytest.raises(ValueError, match="^a.tif cannot be read as a picture .it holds values that are not numbers."):
        read("a.tif")


@pytest.mark.parametrize("orientation, turned", [(2, lambda a: a[:, ::-1]), (4, lambda a: a[::-1]),
                                                 (5, lambda a: a.swapaxes(0, 1)),
                                                 (7, lambda a: np.rot90(a.swapaxes(0, 1), 2))])
def test_a_mirrored_jpeg_is_set_right(folder, orientation, turned):
    exif = Image.Exif()
    exif[274] = orientation
    zoo.write(folder, {"a.jpg": zoo.saved(zoo.RGB, "JPEG", quality=100, subsampling=0, exif=exif)})
    assert np.abs(read("a.jpg").pixels.movedim(0, -1).numpy() - turned(zoo.COLOURS) / 255).max() < 9 / 255


def test_broken_exif_does_not_cost_the_picture(folder):
    zoo.write(folder, {"a.png": zoo.saved(zoo.RGB, "PNG", exif=b"Exif\0\0II*\0" + b"\xff" * 12)})
    assert np.array_equal((read("a.png").pixels.movedim(0, -1) * 255).round().numpy(), zoo.COLOURS)


# ---------------------------------------------------------------------- bad files
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "gif", "tif", "tga", "webp"])
def test_a_file_that_was_cut_off_is_named(folder, kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(folder / f"a.{kind}")
    data = (folder / f"a.{kind}").read_bytes()
    (folder / f"a.{kind}").write_bytes(data[:int(len(data) * share)])
    with pytest.raises(
        ValueError, match=rf"^a\.{kind} cannot be read as a picture \(.*\); save it again .* run again\.$"
    ):
        read(f"a.{kind}")


def test_a_file_without_its_end_mark_is_whole(folder):
    zoo.write(folder, {"a.png": zoo.saved(zoo.RGB, "PNG")[:-12]})
    assert np.array_equal((read("a.png").pixels.movedim(0, -1) * 255).round().numpy(), zoo.COLOURS)


def test_several_bad_files_are_named_together(folder):
    from personalize.nodes.training.augment import Preparation
    from personalize.nodes.training.images import prepare

    zoo.write(folder, {"1.png": zoo.saved(zoo.RGB, "PNG"), "2.heic": b"\0\0\0\x18ftypheic" + bytes(100),
                       "3.jpg": b"none",
                       "4.png": zoo.saved(zoo.RGB, "PNG"), "5.gif": b""})
    with pytest.raises(ValueError) as refused:
        prepare(sources_from_files("zoo", "", 128), Preparation(64, "crop", "none", 1, 0))
    sentence = str(refused.value)
    assert sentence.startswith("2.heic cannot be read as a picture (phones' HEIC photos consist of tiles")
    assert sentence.endswith("run again; 2 more cannot be used either: 3.jpg, 5.gif.") and "\n" not in sentence
