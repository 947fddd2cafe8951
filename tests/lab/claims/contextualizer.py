"""The contextualizer that the masked-language-model loss needs of the miniature's text encoder: made once, shipped.

Started by tests/lab/bench/contextualizer.py.
"""
from __future__ import annotations

import sys
from pathlib import Path

from miniature.comfyui import use_comfyui
from miniature.factors import CLASSES
from miniature.prompts import rich_prompts

from .options import parse_contextualizer


def main(arguments: list[str] | None = None) -> int:
    """Trains it, says what it tells of hidden words, and writes it beside the checkpoint."""
    options = parse_contextualizer(arguments)
    use_comfyui(options.comfyui)
    from support import pack

    pack.make_importable()
    from .world import World

    world = World(options.checkpoint)
    print(write_for(world, world.contextualizer_file, options.steps))
    return 0


def prompts() -> list[str]:
    """Every rich template, with each of the world's classes in turn."""
    return [template.replace("{}", kind) for place, kind in enumerate(CLASSES)
            for template in rich_prompts(kind)[place::len(CLASSES)]]


def write_for(world, file: Path, steps: int) -> str:
    """Trains one for the world's text encoder and writes it; returns how much it tells."""
    from personalize.nodes.papers.context.files import write_contextualizer
    from personalize.nodes.papers.context.learning import Learning, train_contextualizer

    def each_step(progress) -> None:
        if progress.accuracy is not None:
            print(f"step {progress.step} of {steps}, loss {progress.loss:.3f}: {progress.accuracy:.3f} of the hidden "
                  f"words told, {progress.unigram:.3f} by the commonest one", flush=True)

    trained = train_contextualizer(world.networks.clip, prompts(), Learning(steps), file.stem, each_step, 200)
    write_contextualizer(file, trained)
    return f"{file}: {trained.figures['accuracy']:.3f} told, {trained.figures['unigram']:.3f} by the commonest word"


if __name__ == "__main__":
    sys.exit(main())
