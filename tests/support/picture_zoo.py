"""Picture files of every kind that a person may drop, written by Pillow or byte by byte."""
from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

HEIGHT, WIDTH = 24, 40
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
COLOURS = np.stack([COLUMNS * 255 // (WIDTH - 1), ROWS * 255 // (HEIGHT - 1), (COLUMNS // 8 + ROWS // 8) % 2 * 255],
                   axis=-1).astype(np.uint8)
OPACITY = np.clip((COLUMNS - 10) * 20, 0, 255).astype(np.uint8)
GREY = COLOURS[..., 0]
LARGE_TEXT = 3 << 20  # Pillow reads at most 1 MiB of a compressed text

RGB, RGBA, L = Image.fromarray(COLOURS), Image.fromarray(np.dstack([COLOURS, OPACITY])), Image.fromarray(GREY)
PALETTE = RGB.quantize(16)
SECOND = Image.fromarray(COLOURS[::-1].copy())


def png(depth: int, colour_type: int, samples: np.ndarray, chunks: bytes = b"") -> bytes:
    """A PNG of uint8 or uint16 samples (H, W) or (H, W, C)."""
    rows = samples.astype(f">u{depth // 8}").reshape(len(samples), -1)
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(samples: np.ndarray) -> bytes:
    """A grey TIFF of integers with or without sign, or floating point, as its type says."""
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    height, width = samples.shape
    data = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    tags = [(256, width), (257, height), (258, samples.itemsize * 8), (259, 1), (262, 1), (273, 8), (277, 1),
            (278, height),
            (279, len(data)), (339, kind)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    """The file that Pillow writes."""
    file = BytesIO()
    image.copy().save(file, kind, **options)  # JPEG leaves its settings on the image
    return file.getvalue()


def text(size: int, **options) -> PngImagePlugin.PngInfo:
    """A text of that many letters for a PNG."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * size, **options)
    return info


def exact() -> dict[str, bytes]:
    """Files with one right answer, name → bytes."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(LARGE_TEXT)
    two = {"save_all": True, "append_images": [SECOND.copy()]}
    files = {
        "rgb.png": saved(RGB, "PNG"), "rgba.png": saved(RGBA, "PNG"), "grey.png": saved(L, "PNG"),
        "bits.png": saved(L.convert("1"), "PNG"), "grey and alpha.png": saved(RGBA.convert("LA"), "PNG"),
        "palette.png": saved(PALETTE, "PNG"), "palette clear.png": saved(PALETTE, "PNG", transparency=3),
        "grey 16.png": png(16, 0, GREY.astype(np.uint16) * 257),
             "rgb 16.png": png(16, 2, COLOURS.astype(np.uint16) * 257),
        "rgba 16.png": png(16, 6, np.dstack([COLOURS, OPACITY]).astype(np.uint16) * 257),
        "profile.png": saved(RGB, "PNG", icc_profile=profile), "text.png": saved(RGB, "PNG", pnginfo=text(LARGE_TEXT)),
        "packed text.png": saved(RGB, "PNG", pnginfo=text(LARGE_TEXT, zip=True)),
             "moving.png": saved(RGB, "PNG", **two),
        "moving.webp": saved(RGB, "WEBP", lossless=True, **two), "moving.gif": saved(PALETTE, "GIF", **two),
        "still.webp": saved(RGB, "WEBP", lossless=True),
             "still alpha.webp": saved(RGBA, "WEBP", lossless=True, exact=True),
        "rgb.tif": saved(RGB, "TIFF"), "rgba.tif": saved(RGBA, "TIFF"),
        "pages.tif": saved(RGB, "TIFF", **two), "grey 16.tif": tiff(GREY.astype(np.uint16) * 257),
        "rgb.bmp": saved(RGB, "BMP"), "palette.bmp": saved(PALETTE, "BMP"),
        "rgb.tga": saved(RGB, "TGA"), "rgba.tga": saved(RGBA, "TGA"), "rgb.ppm": saved(RGB, "PPM"),
             "grey.pgm": saved(L, "PPM"),
        "grey 16.pgm": saved(Image.fromarray(GREY.astype(np.uint16) * 257), "PPM"),
             "bits.pbm": saved(L.convert("1"), "PPM"),
        "rgb.pcx": saved(RGB, "PCX"), "rgb.sgi": saved(RGB, "SGI"), "really a png.jpg": saved(RGB, "PNG")}
    for bits in (1, 2, 4):
        files[f"palette {bits}.png"] = saved(RGB.quantize(2**bits), "PNG", bits=bits)
        files[f"palette {bits} clear.png"] = saved(RGB.quantize(2**bits), "PNG", bits=bits,
                                                   transparency=bytes([0, 128]))
    return files


def lossy() -> dict[str, bytes]:
    """JPEGs, which every decoder reads a little differently, by name."""
    good = {"quality": 95}
    files = {"4-4-4.jpg": saved(RGB, "JPEG", subsampling=0, **good),
             "4-2-0.jpg": saved(RGB, "JPEG", subsampling=2, **good),
             "grey.jpeg": saved(L, "JPEG", **good), "progressive.jpg": saved(RGB, "JPEG", progressive=True, **good),
             "from Chrome.jfif": saved(RGB, "JPEG", **good), "old.jpe": saved(RGB, "JPEG", **good),
             "two.mpo": saved(RGB, "MPO", save_all=True, append_images=[SECOND.copy()], **good),
             "LOUD.JPG": saved(RGB, "JPEG", **good)}
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[274] = orientation
        files[f"turned {orientation}.jpg"] = saved(RGB, "JPEG", exif=exif, **good)
    return files


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Puts the files there."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
