"""The demo: what it says when it cannot work, and the whole of it as a person would run it."""
from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demonstration import options
from demonstration.setting import prepare
from environment.setup import MODULES, Environment
from support.paths import PACK, comfyui

TOY = PACK / "workflows" / "assets" / "example-toy"


@pytest.mark.parametrize("arguments, sentence", [
    (["--images", "{tmp}/none", "--class-word", "dog"], "none is no folder"),
    (["--images", "{tmp}", "--class-word", "dog"], "holds no pictures"),
    (["--images", str(TOY)], "--images and --class-word belong together"),
    (["--checkpoint", "{tmp}/model.safetensors"], "model.safetensors is no checkpoint file"),
    (["--steps", "1"], "--steps must be at least 2")])
def test_one_sentence_says_what_is_missing(arguments, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit):
        options.parse([argument.replace("{tmp}", str(tmp_path)) for argument in arguments])
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_a_pack_installed_in_comfyui_uses_that_comfyui(tmp_path, monkeypatch):
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "main.py").touch()
    monkeypatch.setattr(options, "PACK", tmp_path / "custom_nodes" / "personalize")
    assert options.installed_in() == str(tmp_path)
    monkeypatch.setattr(options, "PACK", tmp_path / "elsewhere" / "personalize")
    assert options.installed_in() is None


def test_pictures_of_ones_own_are_copied_and_named_in_every_node(tmp_path):
    wanted = options.parse(["--images", str(TOY), "--class-word", "toy", "--steps", "10"])
    setting = prepare(wanted, tmp_path)
    assert "foreign to it" in setting.notice
    assert {file.name for file in (tmp_path / "input" / "my-subject").iterdir()} == {file.name
                                                                                     for file in TOY.iterdir()}
    assert (tmp_path / "models" / "checkpoints" / setting.checkpoint).is_file()
    assert setting.values["PersonalizeConcept"] == {"placeholder": "<my-subject>", "class_words": "toy"}
    assert setting.values["PersonalizeTrain"]["steps"] == 10


@pytest.mark.slow
def test_demo_trains_draws_serves_and_ends(tmp_path):
    """On the miniature's own subject; the page is then open at the workflow that ran."""
    command = [sys.executable, "-m", "demonstration", "--steps", "2", "--serve"]
    variables = Environment(comfyui(), "", Path(sys.executable)).variables()
    variables["PYTHONPATH"] = os.pathsep.join([*MODULES, variables.get("PYTHONPATH", "")])
    demo = subprocess.Popen(command, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, place = [], ""
    try:
        for line in demo.stdout:
            said.append(line.rstrip())
            if place := re.search(r"The page is open at (\S+)/\?template=demo&source=(\S+)", line):
                break
        assert place, said
        base = Path(next(line for line in said if "everything is in" in line).rpartition(" in ")[2].rstrip(":"))
        template = urllib.request.urlopen(f"{place[1]}/api/workflow_templates/{place[2]}/demo.json").read().decode()
        assert "<my-dog>" in template
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
    finally:
        demo.kill()
        demo.wait()
    assert "miniature model" in said[0]
    files = {line.split("  ")[-1].strip() for line in said if line.startswith("  ")}
    assert "models/embeddings/my-dog.safetensors" in files
    assert all((base / file).is_file() for file in files)
    trained, by_file, by_class = (np.asarray(Image.open(base / "output" / "personalize" / name)) for name in (
        "train_embedding_core_00001_.png", "stock-nodes_00001_.png", "stock-nodes_00002_.png"))
    assert np.array_equal(trained, by_file) and not np.array_equal(trained, by_class)
    shutil.rmtree(base)
