"""The demo: what it says when it cannot work, and the whole of it as a person would run it."""
from __future__ import annotations

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
from environment.setup import Environment
from support.paths import PACK, TESTS, comfyui

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


@pytest.mark.slow
def test_demo_trains_draws_serves_and_ends(tmp_path):
    """With pictures of one's own; the page is then open at the workflow that ran."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("toy-1.jpg", "toy-2.jpg"):
        shutil.copy(TOY / name, pictures / name)
    command = [sys.executable, "-m", "demonstration", "--steps", "2", "--serve",
               "--images", str(pictures), "--class-word", "toy"]
    variables = Environment(comfyui(), "", Path(sys.executable), packages=TESTS).variables()
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
        assert "<my-subject>" in template
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
    finally:
        demo.kill()
        demo.wait()
    assert "plumbing run" in said[0]
    files = {line.split("  ")[-1].strip() for line in said if line.startswith("  ")}
    assert "models/embeddings/my-subject.safetensors" in files
    assert all((base / file).is_file() for file in files)
    trained, by_file, by_class = (np.asarray(Image.open(base / "output" / "personalize" / name)) for name in (
        "example-toy_00001_.png", "stock-nodes_00001_.png", "stock-nodes_00002_.png"))
    assert np.array_equal(trained, by_file) and not np.array_equal(trained, by_class)
    shutil.rmtree(base)
