"""What the options of a running call of the denoiser tell of it."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

Options = Mapping[str, Any]


def put_first(model, kind: str) -> None:
    """Lets the newest of a model's patches of this kind see rows and pixels as the denoiser gives them, before patches
    that change their number."""
    lists = model.model_options["transformer_options"]["patches"]
    *others, newest = lists[kind]
    lists[kind] = [newest, *others]


def with_entries(model_options: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """A MODEL's options with these entries among their transformer_options; what is given stays as it is."""
    return {**model_options, "transformer_options": {**model_options["transformer_options"], **entries}}


def step_of(options: Options) -> int:
    """Step (0 …) of the sampler's schedule that the running call belongs to, also between two steps as second-order
    samplers make them."""
    schedule, sigma = options["sample_sigmas"], options["sigmas"][0]
    step = int((schedule >= sigma * (1 - 1e-5)).sum()) - 1
    return min(max(step, 0), max(len(schedule) - 2, 0))


def rows_of_each(tensor: Tensor, options: Options) -> int:
    """Rows of each conditioning in what an attention patch gets (rows, pixels, channels); 0 if another patch has
    changed rows or pixels so that they cannot be told apart."""
    height, width = options["activations_shape"][-2:]
    return rows_told(len(tensor), options) if tensor.shape[1] == height * width else 0


def rows_told(rows: int, options: Options) -> int:
    """Rows of each conditioning, of so many that the denoiser or a part of it gets; 0 if another node has changed their
    number without saying so in the options."""
    count = len(options["cond_or_uncond"])
    expected = len(options["sigmas"]) if "sigmas" in options else rows // count
    return expected if rows == count * expected and len(options.get("uuids", range(count))) == count else 0
