"""What every node that reads a record has in common: its inputs, and the pictures it belongs to."""
from __future__ import annotations

from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

from ..attention.maps import resized, size_of
from ..types import RecordType
from .record import Record, Sampling


def record_inputs() -> list:
    """The inputs record, image and latent."""
    return [
        RecordType.Input("record", tooltip="From Record Attention, Attention of Latent, or a node that changes how the "
                                           "model draws."),
        io.Image.Input("image", optional=True,
                       tooltip="The pictures that were sampled, decoded. They also make this node wait for the "
                               "sampler: connect image or latent. For Apply ViCo: its reference, and latent too."),
        io.Latent.Input("latent", optional=True,
                        tooltip="What the sampler gave. It makes this node wait for the sampler, and finds the right "
                                "run if several samplers use the same MODEL.")]


@dataclass(frozen=True)
class Reading:
    """One sampling run and the pictures it belongs to.

    pictures: (n, H, W, 3) in 0..1, or None if they are not connected.
    images: number n of pictures.
    size: their height and width in pixels.
    """

    run: Sampling
    pictures: Tensor | None
    images: int
    size: tuple[int, int]


def read(record: Record, image: Tensor | None, latent: dict | None) -> Reading:
    """The run that `latent` came from, or the last one. Raises ValueError if that cannot be known or is empty."""
    if image is None and latent is None and not record.complete:
        raise ValueError("Neither image nor latent is connected, so the record may be read before the sampler has run; "
                         "connect the sampler's LATENT, or the decoded IMAGE.")
    run = record.sampling(None if latent is None else latent["samples"])
    if run.of_references and latent is None:
        raise ValueError(f"latent is not connected, so the record of {record.made_by} may be read before the sampler "
                         "has run; connect the sampler's LATENT, and at image the reference pictures.")
    recorded = run.images
    sampled = None if latent is None or run.of_references else latent["samples"]
    asked = {len(given) for given in (image, sampled) if given is not None}
    images = max(asked) if asked else recorded
    if images > recorded or len(asked) > 1:
        raise ValueError(f"{record.made_by} recorded {recorded} pictures, but " + (
            "image and latent differ in number" if len(asked) > 1 else f"{images} are connected")
            + f"; connect {'the reference pictures' if run.of_references else 'what the sampler gave'}.")
    size = size_of(image[..., 0]) if image is not None else (run.factor * run.size[0], run.factor * run.size[1])
    return Reading(run, None if image is None else image[..., :3].float().cpu(), images, size)


def check_numbers(maps: Tensor, made_by: str) -> None:
    """Raises ValueError if maps of attention are no numbers: the model's own weights or activations were none."""
    if not maps.isfinite().all():
        raise ValueError(
            f"The attention that {made_by} saw holds values that are not numbers, as the model gave such while "
            "it ran; start ComfyUI with --fp32-unet, or take out the LoRA or patch that makes it overflow."
        )


def scaled_down(reading: Reading, longest: int) -> Reading:
    """The same with pictures whose longer side has at most `longest` pixels; 0 for no limit."""
    factor = longest / max(reading.size)
    if not longest or factor >= 1:
        return reading
    height, width = (max(1, round(side * factor)) for side in reading.size)
    size = height, width
    pictures = reading.pictures
    if pictures is not None:
        pictures = resized(pictures.movedim(-1, 1), size).movedim(1, -1).clamp(0, 1)
    return Reading(reading.run, pictures, reading.images, size)
