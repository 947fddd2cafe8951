"""The command line of the claims. Standard library only."""
from __future__ import annotations

import argparse
import os
from pathlib import Path

LAB = Path(__file__).resolve().parents[1]
WEIGHTS = LAB / "miniature" / "weights"
# each has a module in techniques/
TECHNIQUES = ("core", "harmonize", "harmonize_choices", "vico", "vico_two", "rates", "overfitting", "mlm", "detex")
SETS = ("varied", "limited", "accompanied")
PROMPTS = 24


def parser() -> argparse.ArgumentParser:
    """What is measured, on what, and where it is kept."""
    options = argparse.ArgumentParser(
        prog="claims.py",
        description="Measures a technique's claims on the miniature world: a table with intervals over "
        "subjects, one line a figure, and contact sheets. What was measured is kept: the same command goes on where it "
        "stopped.",
        parents=[_common()],
    )
    options.add_argument("--technique", choices=TECHNIQUES, required=True)
    options.add_argument("--methods", nargs="+", metavar="NAME", help="only these methods (default: all)")
    whose = options.add_mutually_exclusive_group()
    whose.add_argument("--fresh", type=int, metavar="SEED",
                       help="subjects that nobody chose, drawn from this seed, in a report of their own")
    whose.add_argument("--tuning", action="store_true",
                       help="the subjects on which settings are chosen, in a report of their own")
    options.add_argument("--seeds", type=_count, default=1, metavar="N", help="trainings of each subject (default 1)")
    options.add_argument("--prompts", type=_count, default=PROMPTS, metavar="N",
                         help=f"pictures of a cell (default {PROMPTS}: all evaluation prompts)")
    options.add_argument("--quick", action="store_true",
                         help="one subject, two prompts, a handful of steps: shows that everything works, no more")
    options.add_argument("--oracle", type=_file, metavar="FILE", default=WEIGHTS / "oracle.safetensors")
    options.add_argument("--out", type=Path, metavar="FOLDER", default=LAB.parents[1] / ".testenv" / "claims",
                         help="where cells, report and sheets are kept (default .testenv/claims)")
    options.add_argument("--minutes", type=float, metavar="M", help="stop then, and show what is there")
    options.add_argument("--processes", type=_count, default=1, metavar="N",
                         help="subjects worked on at once, one thread each (default 1)")
    options.add_argument("--share", help=argparse.SUPPRESS)
    return options


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; ends with one sentence when they cannot work."""
    own = parser()
    options = own.parse_args(arguments)
    _check_files(own, options, "checkpoint", "oracle")
    if options.quick:
        options.subjects, options.seeds, options.prompts = 1, 1, 2
    return options


def parse_gradients(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of core_gradients.py; ends as `parse` does."""
    own = argparse.ArgumentParser(
        prog="core_gradients.py",
        description="Cosine and norm ratio of CoRe's estimator to the exact gradient at points "
        "of real trainings on the miniature world.",
        parents=[_common()],
    )
    own.add_argument("--steps", type=_count, default=300, metavar="N", help="steps of a training (default 300)")
    own.add_argument("--points", type=_count, default=5, metavar="N", help="points of a training (default 5)")
    own.add_argument("--batches", type=_count, default=4, metavar="N",
                     help="regularization prompts and batches at a point (default 4)")
    options = own.parse_args(arguments)
    _check_files(own, options, "checkpoint")
    return options


def parse_contextualizer(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of contextualizer.py; ends as `parse` does."""
    own = argparse.ArgumentParser(
        prog="contextualizer.py",
        description="Trains the contextualizer of a checkpoint's text encoder on the miniature world's rich prompts "
        "and writes it beside the checkpoint.",
        parents=[_of_the_world()],
    )
    own.add_argument("--steps", type=_count, default=2000, metavar="N", help="steps of the training (default 2000)")
    options = own.parse_args(arguments)
    _check_files(own, options, "checkpoint")
    return options


def _common() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, parents=[_of_the_world()])
    options.add_argument("--subjects", type=_count, default=12, metavar="N",
                         help="the first N novel subjects (default 12, the fewest that carry a claim)")
    options.add_argument("--set", choices=SETS, default="varied",
                         help="reference pictures: five places and poses, one place and pose, or with a second object "
                              "(default varied)")
    return options


def _of_the_world() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--checkpoint", type=_file, metavar="FILE", default=WEIGHTS / "miniature.safetensors")
    options.add_argument("--comfyui", metavar="PATH", default=os.environ.get("COMFYUI_PATH"),
                         help="use this ComfyUI (also: COMFYUI_PATH); default: one is downloaded")
    options.add_argument("--python", metavar="PATH", help="the Python that runs it, where it is not found beside it")
    return options


def _check_files(own: argparse.ArgumentParser, options: argparse.Namespace, *names: str) -> None:
    for name in names:
        file = getattr(options, name)
        if not file.is_file():
            own.error(
                f"{file} is not there; name a trained --{name}, or train one: python3 tests/lab/miniature/train.py"
            )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 on")
    return int(text)


def _file(text: str) -> Path:
    return Path(text).expanduser().absolute()
