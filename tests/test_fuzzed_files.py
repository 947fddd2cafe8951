"""Odd files for every loader: a usable result or one sentence, within memory that goes with the file's size.

A few files of each kind, always the same; `bench/faulting/fuzz.py` tries thousands.
"""
from __future__ import annotations

from pathlib import Path

import folder_paths
import hypothesis
import pytest
import torch

from support.fuzzed_loaders import RUN, loaders
from support.fuzzing import check, files
from support.hostile_files import bombs, embedding, tensor

pytestmark = pytest.mark.filterwarnings("ignore")
FILES_EACH = 20
NAMES = ("embedding", "concept", "vico", "ip_adapter", "elite", "word_list", "tokenizer", "prompts", "caption", "state",
         "report", "picture", "blip_hugging_face_model_index", "blip_hugging_face_vocab", "blip_hugging_face_model",
         "blip_hugging_face_config", "blip_lavis_vocab", "blip_lavis_blip_weight", "blip_lavis_proj_weight")


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    return loaders(tmp_path_factory.mktemp("sound"), Path(folder_paths.get_output_directory()) / "personalize" / RUN)


@pytest.mark.parametrize("name", NAMES)
def test_odd_files(every, name, tmp_path):
    @hypothesis.settings(max_examples=FILES_EACH, derandomize=True, deadline=None, database=None,
                         phases=[hypothesis.Phase.generate], suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(files(every[name]))
    def each(file):
        check(every[name], tmp_path, *file)

    each()


def test_every_loader_is_tried_and_reads_the_files_that_the_odd_ones_come_from(every, tmp_path):
    assert set(NAMES) == set(every)
    for name, loader in every.items():
        for suffix, seeds in loader.seeds.items():
            for i, data in enumerate(seeds):
                if (name, i) == ("prompts", 1):  # UTF-16
                    continue
                check(loader, tmp_path / name, suffix, data)
                path = tmp_path / name / (loader.place or f"file{suffix}")
                if path.parent.name != "proj_layer":
                    assert loader.read(path) is not None


def test_the_check_sees_what_it_is_for(every, tmp_path):
    """A loader that believes a stride, one that raises what it met, and one that gives back zeros."""
    loader = every["embedding"]
    stride = embedding(tmp_path / "a.pt", tensor("0", 768, (100_000, 768), (0, 1)), {"0": bytes(3_072)}).read_bytes()

    def believes(path):
        return torch.load(path, weights_only=True)["string_to_param"]["*"].to(torch.float32, copy=True)

    def raw(path):
        return {}["clip_l"]

    def zeros(path):
        return {"clip_l": torch.zeros(1, 768)}, {}

    for read, error, message in ((believes, AssertionError, "bytes of memory for"), (raw, KeyError, "clip_l"),
                                 (zeros, AssertionError, "")):
        with pytest.raises(error, match=message or None):
            check(type(loader)({}, read, loader.holds), tmp_path, ".pt", stride)
    for path in bombs(tmp_path).values():
        check(loader, tmp_path / "bombs", path.suffix, path.read_bytes())
