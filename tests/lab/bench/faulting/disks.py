"""Every write of a training fails once, on a full disk and on one that refuses: what could be kept must be there."""
from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import folder_paths
import pytest
import torch

from support.faults import DENIED, FULL, failing_writes

from .contents import differences, files_of, unreadable

STEPS = 2


def run() -> dict[str, tuple[int, int]]:
    """Name of the fault → (how often all was kept that could be, writes that failed)."""
    from personalize.nodes.families.unet import UNet
    from personalize.nodes.papers.vico.parts import ImageAttentionPart, WithReferences
    from personalize.nodes.training.parts.embedding import EmbeddingPart
    from personalize.nodes.training.parts.weights import AdapterPart
    from support.trainings import make_job

    loaded = _checkpoint()
    parts = {"embedding": (EmbeddingPart(),), "LoRA": (EmbeddingPart(), AdapterPart(rank=2, lr=1e-2)),
             "ViCo": (EmbeddingPart(), ImageAttentionPart())}
    jobs = {name: make_job(loaded, f"whole-{name}", steps=STEPS, parts=part, save_every=1, preview_every=STEPS)
            for name, part in parts.items()}
    jobs["ViCo"] = replace(jobs["ViCo"], recipe=WithReferences(jobs["ViCo"].recipe))
    UNet.preview = replace(UNet.preview, steps=2)
    results = {}
    with _base() as base:
        for fault, error in (("full", FULL), ("denied", DENIED)):
            pairs = [_survived(base, technique, replace(job, name=f"{job.name}-{fault}"), error)
                     for technique, job in jobs.items()]
            results[fault] = tuple(map(sum, zip(*pairs)))
    return results


def _survived(base: Path, technique: str, job, error: int) -> tuple[int, int]:
    with failing_writes(lambda number, path: False) as writes:
        _run(job)
    whole, good = files_of(base, job.name), 0
    for failing in range(len(writes.tried)):
        name = f"{technique}-{error}-{failing}"
        wrong = _fail(base, replace(job, name=name), failing, error, whole)
        good += not wrong
        print(f"write {failing + 1} of {len(writes.tried)} ({writes.tried[failing].name}) of {technique}: "
              f"{'; '.join(wrong) or 'the rest kept'}", flush=True)
    return good, len(writes.tried)


def _fail(base: Path, job, failing: int, error: int, whole: dict[str, Path]) -> list[str]:
    """What was lost beside the file whose write failed, at once and after another run without fault."""
    with failing_writes(lambda number, path: number == failing, error, retry_seconds=0.1) as writes:
        ended_well = _run(job)
    lost = writes.failed[0].name
    found = files_of(base, job.name)
    wrong = [told for path in found.values() if (told := unreadable(path))]
    wrong += [f"{name} is missing" for name in whole.keys() - found.keys() if not name.endswith(f"/{lost}")]
    last_and_precious = lost.endswith(f"-{STEPS:06d}.safetensors") and not lost.startswith("state")
    if ended_well == last_and_precious:
        wrong.append("the run ended well" if ended_well else "the run failed")
    if not _run(job):
        wrong.append("it does not go on")
    if last_and_precious or not lost.endswith((".png", ".safetensors")):
        wrong += differences(files_of(base, job.name), whole)
    return wrong


def _run(job) -> bool:
    from personalize.nodes.training.job import run_job
    from personalize.nodes.training.saving import NotSaved

    try:
        with torch.inference_mode():
            run_job(job)
        return True
    except NotSaved:
        return False


@contextmanager
def _base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "get_output_directory", lambda: f"{folder}/output")
        for kind in ("embeddings", "loras", "vico"):
            patch.setitem(folder_paths.folder_names_and_paths, kind, ([f"{folder}/models/{kind}"], {".safetensors"}))
        yield Path(folder)


def _checkpoint():
    from support import inprocess

    return inprocess.load_checkpoint(inprocess.provide_checkpoint("sd15", Path(folder_paths.base_path)))
