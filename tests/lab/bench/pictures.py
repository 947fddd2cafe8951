#!/usr/bin/env python3
"""How often the check of a subject's pictures is right, on photographs of DreamBooth's data set (github
google/dreambooth, 30 subjects, 158 photographs), which people have to bring. See README.md here."""
from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageFilter, ImageOps

sys.path[:1] = [str(Path(__file__).resolve().parents[2] / room) for room in (".", "lab", "tools")]

from support import inprocess, pack

inprocess.start(Path(tempfile.mkdtemp()))
pack.make_importable()
from personalize.nodes.training.picture_check import BLURRED, SAME_PICTURE, findings
from personalize.nodes.training.picture_look import likeness, look_at
from personalize.nodes.training.picture_reading import read_small

SIZE = 512
# Photographs before one background, as a person sees it, where they are three or more and half of the subject's.
SAME = {"backpack": 3, "berry_bowl": 6, "cat": 5, "clock": 3, "dog6": 4, "pink_sunglasses": 3, "red_cartoon": 4,
        "vase": 4}
AGAIN = {"half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
         "mirrored": ImageOps.mirror,
         "cropped to 0.9": lambda image: image.crop((image.width // 30, 0, image.width * 28 // 30,
                                                      image.height * 9 // 10)),
         "turned by 3°": lambda image: image.rotate(3)}
BLUR = (1.5, 2, 2.5, 3)  # pixels of 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder with one folder of photographs for each subject")
    subjects = sorted(path for path in parser.parse_args().folder.iterdir() if path.is_dir())
    started = time.process_time()
    images = {path.name: {file.name: read(file) for file in sorted(path.glob("*.jpg"))} for path in subjects}
    looks = {name: {file: look_at(image, *image.size) for file, image in group.items()}
             for name, group in images.items()}
    every = [look for group in looks.values() for look in group.values()]
    print(f"figure seconds_a_picture {(time.process_time() - started) / len(every):.3f}")
    for half, first in (("chosen_on", 0), ("held_out", 1)):
        backgrounds(half, {path.name: looks[path.name] for path in subjects[first::2]})
    print(f"figure sharp_called_blurred {sum((look.sharpness or 1) < BLURRED for look in every)} of {len(every)}")
    firsts = [next(iter(group.values())) for group in images.values()]
    for pixels in BLUR:
        soft = [image.filter(ImageFilter.GaussianBlur(pixels)) for image in firsts]
        found = sum((look_at(image, 1, 1).sharpness or 1) < BLURRED for image in soft)
        print(f"figure blur_of_{pixels}_found {found} of {len(firsts)}")
    for how, change in AGAIN.items():
        found = sum(likeness(views(image), views(change(image))) > SAME_PICTURE for image in firsts)
        print(f"figure again_{how.replace(' ', '_')} {found} of {len(firsts)}")
    alike = [(name, *pair) for name, group in looks.items() for pair in itertools.combinations(group, 2)
             if likeness(group[pair[0]].views, group[pair[1]].views) > SAME_PICTURE]
    print("called nearly the same:", *alike)


def backgrounds(half: str, looks) -> None:
    codes = {name: {one.code for one in findings(group, 1, "crop")} for name, group in looks.items()}
    told = {name for name in codes if "background" in codes[name]}
    truth = SAME.keys() & looks.keys()
    print(f"figure background_{half}_found {len(told & truth)} of {len(truth)}")
    print(f"figure background_{half}_wrong {len(told - truth)} of {len(looks) - len(truth)}", *sorted(told - truth))


def read(file: Path) -> Image.Image:
    small, _ = read_small(file, SIZE)
    factor = min(1, SIZE / min(small.size))
    size = round(small.width * factor), round(small.height * factor)
    return small.convert("RGB").resize(size, Image.Resampling.BILINEAR)


def views(image: Image.Image):
    return look_at(image, *image.size).views


if __name__ == "__main__":
    main()
