"""Real servers, killed without warning at random moments of a training, and what the next server makes of it."""
from __future__ import annotations

import contextlib
import random
import tempfile
import time
from pathlib import Path

from support import inprocess
from support.failures import PromptFailed
from support.paths import PACK, TESTS
from support.server import ComfyServer
from support.training_page import training_prompt

from .contents import UNFINISHED, differences, files_of, unreadable

STEPS = 4
EMBEDDING = {"class_type": "PersonalizeTrainEmbedding",
             "inputs": {"learning_rate": 0.005, "rescale_first_step": 0, "rescale_last_step": 0}}
LORA = {"class_type": "PersonalizeTrainAdapter", "inputs": {
    "algorithm": "LoRA", "rank": 4, "alpha": 4.0, "learning_rate": 0.01, "attention_only": True, "previous": ["8", 0]}}
VICO = {"class_type": "PersonalizeTrainViCo", "inputs": {
    "learning_rate": 1e-4, "embedding_learning_rate": 0.005, "placement": "decoder", "object_mask": "Eq. 5"}}
REFERENCES = {"class_type": "PersonalizeTrainingReferences", "inputs": {}}
# technique → nodes of its graph, inputs of Train, files of a step in the model folders
TECHNIQUES = {"embedding": ({"5": EMBEDDING}, {}, ("models/embeddings/dog",)),
              "LoRA": ({"5": LORA, "8": EMBEDDING}, {}, ("models/embeddings/dog", "models/loras/weights")),
              "ViCo": ({"5": VICO, "8": REFERENCES}, {"recipe": ["8", 0]},
                       ("models/embeddings/dog", "models/vico/image-blocks"))}


def run(count: int, seed: int) -> tuple[int, int]:
    """Kills `count` servers; returns (how often nothing was lost or left, count)."""
    with tempfile.TemporaryDirectory() as base:
        inprocess.provide_checkpoint("sd15", _folders(Path(base)))
        server = ComfyServer(Path(base), {"personalize": PACK, "tiny_models": TESTS / "tiny"})
        try:
            return _Kills(server, seed).survived(count), count
        finally:
            server.stop()


def _folders(base: Path) -> Path:
    (base / "models" / "checkpoints").mkdir(parents=True)
    return base


def graph(technique: str, name: str, **changes) -> dict:
    """A training in API format that saves at every step."""
    nodes, inputs, _ = TECHNIQUES[technique]
    prompt = training_prompt(name, steps=STEPS, batch_size=1, save_every=1, preview_every=3, resume="continue",
                             **inputs,
                             **changes)
    del prompt["7"]
    return {**prompt, **nodes}


class _Kills:
    def __init__(self, server: ComfyServer, seed: int):
        self.server, self.draw = server, random.Random(seed)
        self.whole, self.seconds = {}, {}

    def survived(self, count: int) -> int:
        for technique in TECHNIQUES:
            self.server.restart()  # a killed one is new, too
            started = time.monotonic()
            self.server.run(graph(technique, f"whole-{technique}"))
            self.seconds[technique] = time.monotonic() - started
            self.whole[technique] = files_of(self.server.base, f"whole-{technique}")
        good = 0
        self.server.restart()
        for number in range(count):
            technique = list(TECHNIQUES)[number % len(TECHNIQUES)]
            moment = self.draw.random() * self.seconds[technique]
            wrong = self._kill(technique, f"killed-{number}", moment)
            good += not wrong
            print(
                f"kill {number + 1} of {count}: {technique} after {moment:.1f} s: {'; '.join(wrong) or 'nothing lost'}",
                flush=True,
            )
        return good

    def _kill(self, technique: str, name: str, moment: float) -> list[str]:
        base = self.server.base
        running = self.server.start(graph(technique, name))
        time.sleep(moment)
        self.server.restart(kill=True)
        running.close()
        wrong = [told for path in files_of(base, name).values() if (told := unreadable(path))]
        wrong += self._use_a_step(technique, name)
        try:
            self.server.run(graph(technique, name))
        except PromptFailed as error:
            return [*wrong, f"it does not go on: {error.message}"]
        wrong += differences(files_of(base, name), self.whole[technique])
        return wrong + [f"{path} is left" for path in base.rglob(UNFINISHED)]

    def _use_a_step(self, technique: str, name: str) -> list[str]:
        """Whole steps are usable, others are refused."""
        found, beside = files_of(self.server.base, name), TECHNIQUES[technique][2]
        step = self.draw.randint(1, STEPS)
        whole = all(f"{stem}-{step:06d}.safetensors" in found for stem in beside)
        with contextlib.suppress(PromptFailed):
            self.server.run(graph(technique, name, use_step=step))
            return [] if whole else [f"step {step} is used though files of it are missing"]
        return [f"step {step} cannot be used though it is whole"] if whole else []
