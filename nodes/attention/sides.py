"""Which list of a guider the conditionings of a run belong to, in whatever order guiders and nodes run them."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

from comfy.patcher_extension import WrappersMP

from ..notice import notice
from .calls import with_entries

Side = Literal["positive", "negative"]

KEY = "personalize.sides"
IDS = "personalize.sides.ids"
SAID = "personalize.sides.said"


def side_named(name: str) -> Side:
    """Side that a guider means by the name of a list of conditionings, such as "middle" or "empty_negative_prompt"."""
    return "negative" if "negative" in name else "positive"


def lists_by_id(conditionings: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[UUID, str]:
    """Name of the list of each conditioning by its "uuid", which copies keep. conditionings: by name, before they are
    prepared for sampling, for that adds copies of one list's to the others."""
    return {options["uuid"]: name for name, listed in conditionings.items() for options in listed}


def lists_of(conds: Sequence[Sequence[Mapping[str, Any]] | None], ids: Mapping[UUID, str]) -> dict[int, str]:
    """Names of the lists of conditionings of one call, by index; of None there is none.

    A list's first entry tells, since copies of the others' are added to its end. A list that the guider does not hold
    is none of its positive ones; Perp-Neg runs its empty prompt so.
    """
    return {index: ids.get(listed[0]["uuid"], "negative") for index, listed in enumerate(conds) if listed}


def list_at(options: Mapping[str, Any], index: int) -> str:
    """Name of the list of the rows with this index in options["cond_or_uncond"]; where no run tells, as in training, 0
    is "positive" and the rest "negative".

    options: what an attention patch gets, of a model after `tell_sides`.
    """
    return options.get(KEY, {}).get(index, "negative" if index else "positive")


def side_at(options: Mapping[str, Any], index: int) -> Side:
    """Side that the list means; inputs as for `list_at`."""
    return side_named(list_at(options, index))


def with_sides(model_options: dict, conds: Sequence[Sequence[Mapping[str, Any]] | None]) -> dict:
    """Options of one call that tell the lists of its conditionings, if those of the run tell the ids."""
    options = model_options.get("transformer_options", {})
    if IDS not in options:
        return model_options
    return with_entries(model_options, {KEY: lists_of(conds, options[IDS])})


def say_once(options: Mapping[str, Any], sentence: str) -> None:
    """Says it at the sampler, once in a sampling run; options as for `list_at`."""
    said: set[str] = options.get(SAID, set())
    if sentence not in said:
        said.add(sentence)
        notice(sentence)


def tell_sides(model) -> None:
    """Lets patches of `model` ask `list_at` and `side_at`, and `say_once`, in every sampling run."""
    if not model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY):
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _sampler_sample)
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, _calc_cond_batch)


def _sampler_sample(executor, guider, sigmas, extra_args, *args, **kwargs):
    options = with_entries(extra_args["model_options"], {IDS: lists_by_id(guider.original_conds), SAID: set()})
    return executor(guider, sigmas, {**extra_args, "model_options": options}, *args, **kwargs)


def _calc_cond_batch(executor, model, conds, x, timestep, model_options):
    return executor(model, conds, x, timestep, with_sides(model_options, conds))
