"""What pictures may take of memory: counted and refused in a sentence before anything is decoded or drawn."""
from __future__ import annotations

import struct
import subprocess
import sys
import weakref
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from personalize.nodes.training import picture_bounds
from personalize.nodes.training.augment import Preparation, prepared
from personalize.nodes.training.dataset import encode_pictures
from personalize.nodes.training.images import Loaded, Source, prepare, sources_from_tensors
from support import picture_zoo as zoo
from support.paths import TESTS
from support.pictures import sources_from_files
from support.trainings import subject


def empty_png(width: int, height: int) -> bytes:
    """A small file of that many grey pixels, all black."""
    packed, row = zlib.compressobj(), bytes(width + 1)
    rows = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + zoo.chunk(b"IHDR", header) + zoo.chunk(b"IDAT", rows) + zoo.chunk(b"IEND", b""))


def declared_png(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds no pixels: only its header can be read."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + zoo.chunk(b"IHDR", header) + zoo.chunk(b"IDAT", b"") + zoo.chunk(b"IEND", b"")


@pytest.mark.parametrize("width, height, sentence", [
    (30000, 10, "more than 8 times as long as wide; cut it around the subject"),
    (10, 30000, "more than 8 times as long as wide"), (801, 100, "more than 8 times"), (7, 7, ("at least 8 on each "
                                                                                              "side")),
    (20000, 5001, "more than the 100 million that are read; make it smaller"),
    (20000, 10000, "million .*that are read; make it smaller"),
    (2**31 - 1, 2**31 - 1, "million .*that are read|cannot be read")])
def test_a_size_that_is_refused_before_decoding(folder, width, height, sentence):
    (folder / "a.png").write_bytes(declared_png(width, height))
    with pytest.raises(ValueError, match=f"^a.png .*{sentence}") as refused:
        sources_from_files("dogs", "a.png", 1024)[0].load()
    assert "\n" not in str(refused.value)


def test_the_bounds_themselves_are_allowed():
    picture_bounds.check_sides("a", 800, 100)
    picture_bounds.check_sides("a", 12500, 8000)
    picture_bounds.check_sides("a", 8, 8)
    for image in (torch.rand(1, 801, 100, 3), torch.rand(1, 100, 801, 3)):
        with pytest.raises(ValueError, match="^picture 1 is .* more than 8 times as long as wide"):
            sources_from_tensors([image], [])[0].load()


def test_no_more_variants_are_made_at_a_time_than_their_bytes_hold(monkeypatch, sd15):
    """In groups or all together: the same variants, masks and latents."""
    mask = torch.zeros(1, 80, 100)
    mask[:, 20:60, 30:70] = 1
    sources = sources_from_tensors([torch.rand(1, 80, 100, 3, generator=torch.Generator().manual_seed(0))], [mask])
    [picture] = prepare(sources, Preparation(64, "crop", "as released", 5, 0)).pictures
    subjects = [replace(subject(), pictures=(picture,))]
    [(pixels, masks)] = picture.made()
    [[together]] = encode_pictures(sd15.vae, sd15.model, subjects, 0).pictures
    monkeypatch.setattr(picture_bounds, "AT_ONCE", 2 * 64 * 64 * 16)
    groups = list(picture.made())
    assert [len(group) for group, _ in groups] == [2, 2, 1]
    assert all(torch.equal(torch.cat(parts), whole) for parts, whole in zip(zip(*groups), (pixels, masks)))
    [[apart]] = encode_pictures(sd15.vae, sd15.model, subjects, 0).pictures
    torch.testing.assert_close((apart.latents, apart.masks), (together.latents, together.masks))


@pytest.mark.parametrize("pictures, how, expected", [
    (5, Preparation(64, "crop", "as released", 16, 0), (16, 5)),
    (5, Preparation(512, "crop", "as released", 16, 0), (3, 5)),
    (100, Preparation(1024, "crop", "as released", 16, 0), (1, 4)),
    (5000, Preparation(512, "crop", "flip", 1, 0), (1, 16)),
    (3, Preparation(2048, "crop", "as released", 64, 0), (1, 1))])
def test_what_is_shown_fits_into_its_bytes(pictures, how, expected):
    each, number = picture_bounds.count_shown(pictures, how)
    assert (each, number) == expected
    assert each * number * how.size**2 * 16 <= picture_bounds.SHOWN


def test_of_many_pictures_all_are_trained_on_and_some_shown(monkeypatch):
    monkeypatch.setattr(picture_bounds, "SHOWN", 5 * 16 * 16 * 16)
    batch = torch.rand(7, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    made = prepare(sources_from_tensors([batch], []), Preparation(16, "crop", "none", 1, 0))
    assert len(made.pictures) == 7 and torch.equal(made.pixels, batch[:5])
    assert all(torch.equal(next(picture.made())[0], batch[i:i + 1]) for i, picture in enumerate(made.pictures))


def test_a_picture_that_has_changed_is_told(folder):
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(folder / "a.png")
    [picture] = prepare(sources_from_files("dogs", "", 64), Preparation(32, "crop", "none", 1, 0)).pictures
    assert next(picture.made())[0].shape == (1, 32, 32, 3)
    Image.new("RGB", (32, 32), "blue").save(folder / "a.png")
    with pytest.raises(ValueError, match="^a.png has changed since the Subject node read it; run the workflow again.$"):
        next(picture.made())


def test_one_picture_at_a_time_is_held_at_its_full_size():
    read, held = [], []

    def load() -> Loaded:
        held.append(sum(pixels() is not None for pixels in read))
        pixels = np.zeros((3, 100, 100), np.float32)
        read.append(weakref.ref(pixels))
        return Loaded(torch.from_numpy(pixels), None)

    prepare([Source(f"{number}", load) for number in range(12)], Preparation(32, "crop", "none", 1, 0))
    assert held == [0] + [1] * 11


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_a_long_picture_is_turned_on_a_bounded_canvas(fit, monkeypatch):
    """The canvas of a picture turned by 45° is as wide as both its sides together over √2."""
    from personalize.nodes.training import augment

    largest, rotated = [], augment.rotated

    def watched(picture, degrees):
        turned = rotated(picture, degrees)
        largest.append(turned[0].numel())
        return turned

    monkeypatch.setattr(augment, "rotated", watched)
    how = Preparation(16, fit, "as released", 20, 0)
    list(prepared(torch.rand(3, 64, 512), how, 0))
    assert len(largest) > 5 and max(largest) <= (how.enough * 5) ** 2 / 2 * 1.1


def test_padding_a_long_picture_is_bounded(monkeypatch):
    from personalize.nodes.training import augment

    sides, padded = [], augment._padded

    def watched(picture):
        sides.append(max(picture.shape))
        return padded(picture)

    monkeypatch.setattr(augment, "_padded", watched)
    [made] = prepared(torch.rand(3, 100, 800), Preparation(16, "pad", "none", 1, 0), 0)
    assert made.shape == (3, 16, 16)
    assert sides == [4 * 32]


PEAKS = """
import resource, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from support import inprocess, pack
inprocess.start(Path(sys.argv[2])); pack.make_importable()
from personalize.nodes.training.augment import Preparation
from personalize.nodes.training.images import prepare
from support.pictures import sources_from_files
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[3:]:
    try:
        prepare(sources_from_files("", name, 1024), Preparation(512, "crop", "as released", 4, 0))
    except ValueError as error:
        print(error, file=sys.stderr)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts the peak in KB")
def test_peaks_of_small_files_that_are_large_pictures(tmp_path):
    """MB beyond what importing takes, in a process of its own; 30000 × 10 took 4900 before."""
    (tmp_path / "input").mkdir()
    most = {"long.png": (empty_png(30000, 10), 50), "huge.png": (empty_png(20000, 20000), 50),
            "allowed.png": (empty_png(8000, 1000), 600)}
    for name, (data, _) in most.items():
        (tmp_path / "input" / name).write_bytes(data)
    done = subprocess.run([sys.executable, "-c", PEAKS, str(TESTS), str(tmp_path), *most], capture_output=True,
                          text=True,
                          check=True, timeout=300)
    assert done.stderr.count("cut it around the subject") == done.stderr.count("million pixels that are read") == 1
    for peak, (_, allowed) in zip(map(int, done.stdout.split()), most.values(), strict=True):
        assert peak < allowed, done.stdout
