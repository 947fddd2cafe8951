"""Runs the demonstration; started by tests/demo.py with the Python that runs ComfyUI."""
from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import torch

from authoring.catalog import template
from environment.report import say
from support.failures import PromptFailed
from support.paths import CACHE
from support.server import ComfyServer
from support.workflows import to_prompt, with_values

from .options import parse
from .setting import Setting, prepare
from .story import Story, summary

WORKFLOW = template("train_embedding_core")
PAGE_PACK = "demonstration"  # a pack whose only content is the template that --serve opens
LONGEST = 24 * 3600


def main() -> int:
    """Train, draw, say where everything is."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process would ignore Ctrl+C
    options = parse()
    base = CACHE / "demo" / time.strftime("%Y-%m-%d-%H%M%S")
    (base / PAGE_PACK / "workflows").mkdir(parents=True)
    (base / PAGE_PACK / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    setting = prepare(options, base)
    if setting.notice:
        say(setting.notice)
    say("starting ComfyUI")
    has_accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
    server = ComfyServer(base, {**setting.packs, PAGE_PACK: base / PAGE_PACK},
                         () if setting.modest or has_accelerator else ("--cpu",), setting.modest)
    try:
        demonstrate(server, setting)
        if options.serve:
            serve(server)
    except PromptFailed as problem:
        print(f"\n{problem}\nWhat ComfyUI said is in {server.log_file}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say(f"stopped; what there is lies in {base}")
        return 130
    finally:
        server.stop()
    return 0


def demonstrate(server: ComfyServer, setting: Setting) -> None:
    """Run the bundled workflow, then draw with the file it saved by stock nodes alone."""
    definitions = server.get("/object_info")
    values = {"CheckpointLoaderSimple": {"ckpt_name": setting.checkpoint}, **setting.values}
    document = with_values(json.loads(WORKFLOW.read_text(encoding="utf-8")), definitions, values)
    (server.base / PAGE_PACK / "workflows" / "demo.json").write_text(json.dumps(document), encoding="utf-8")
    prompt = to_prompt(document, definitions)
    say(f"running {WORKFLOW.name}")
    run = server.run(prompt, LONGEST, Story(prompt, definitions, server.base / "output").tell)
    by_type = {node["class_type"]: run.outputs.get(node_id, {}) for node_id, node in prompt.items()}
    embedding, embedding_file = by_type["PersonalizeSaveConcept"]["text"][0].splitlines()
    say("drawing the same prompt with stock nodes alone: by the saved file, and by the class word")
    drawn = [(text, draw(server, prompt, text)) for text in stock_texts(prompt, embedding)]
    say(f"done; everything is in {server.base}:")
    found = [("embedding", Path(embedding_file)), ("losses", loss_chart(server, by_type)),
             (f"“{text_of(prompt)}”", output_file(server, by_type["SaveImage"]["images"][0])),
             *((f"“{text}”", file) for text, file in drawn)]
    print(summary(found, server.base), flush=True)


def stock_texts(prompt: dict, embedding: str) -> list[str]:
    """The workflow's prompt with the embedding's file, and with the class words, in the place of the placeholder."""
    concept = inputs_of(prompt, "PersonalizeConcept")
    return [text_of(prompt).replace(concept["placeholder"], words) for words in (embedding, concept["class_words"])]


def text_of(prompt: dict) -> str:
    """The prompt that the workflow draws."""
    return prompt[inputs_of(prompt, "KSampler")["positive"][0]]["inputs"]["text"]


def draw(server: ComfyServer, trained: dict, text: str) -> Path:
    """The picture that stock nodes draw for `text`, with the workflow's own sampler settings."""
    sampler = {**inputs_of(trained, "KSampler"), "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0],
               "latent_image": ["4", 0]}
    run = server.run({
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": inputs_of(trained, "CheckpointLoaderSimple")},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": text}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": inputs_of(trained, "EmptyLatentImage")},
        "5": {"class_type": "KSampler", "inputs": sampler},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "personalize/stock-nodes"}},
    }, LONGEST)
    return output_file(server, run.outputs["7"]["images"][0])


def inputs_of(prompt: dict, class_type: str) -> dict:
    """Inputs of the only node of this type."""
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == class_type)


def output_file(server: ComfyServer, file: dict) -> Path:
    """Where a saved picture lies."""
    return server.base / "output" / file["subfolder"] / file["filename"]


def loss_chart(server: ComfyServer, by_type: dict[str, dict]) -> Path:
    """The picture of Plot Loss Graph, taken out of ComfyUI's temporary folder, beside the run's losses.csv."""
    run = by_type["PersonalizeTrain"]["personalize_training"][0]["run"]
    chart = server.base / "output" / "personalize" / run / "loss_chart.png"
    chart.write_bytes(server.view(by_type["LossGraphNode"]["images"][0]))
    return chart


def serve(server: ComfyServer) -> None:
    """Leave the page open until Ctrl+C."""
    print(f"\nThe page is open at {server.url}/?template=demo&source={PAGE_PACK}   (Ctrl+C ends it)", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    sys.exit(main())
