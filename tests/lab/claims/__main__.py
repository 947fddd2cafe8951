"""Makes the cells of a technique's claims and reports them; started by tests/lab/bench/claims.py."""
from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from miniature.comfyui import use_comfyui

from .options import parse


def main(arguments: list[str] | None = None) -> int:
    """Make what is missing, then show what is there; 1 if something is still missing."""
    options = parse(arguments)
    use_comfyui(options.comfyui)
    from support import pack

    pack.make_importable()
    from .harness import Harness
    from .store import Store
    from .technique import load_technique
    from .world import World

    started = time.monotonic()
    technique = load_technique(options.technique, options.quick)
    chosen = _methods(technique.methods, options.methods)
    tasks = _tasks(options, technique.prompts)
    harness = Harness(World(options.checkpoint, options.oracle), Store(options.out),
                      lambda line: print(f"[{time.monotonic() - started:6.0f} s] {line}", flush=True))
    whole = _make_in_children(options, len(tasks)) if options.processes > 1 else _make(harness, chosen, tasks, options)
    if not options.share:
        _report(options, technique, chosen, tasks, harness)
    return 0 if whole else 1


def _methods(known: Sequence, wanted: Sequence[str] | None) -> list:
    names = [method.name for method in known]
    unknown = next((name for name in wanted or () if name not in names), None)
    if unknown:
        sys.exit(f"{unknown} is no method of this technique; choose from {' '.join(names)}.")
    return [method for method in known if not wanted or method.name in wanted]


def _tasks(options: argparse.Namespace, prompts) -> list:
    """One a seed and subject, all subjects of the first seed first."""
    from .task import task_for
    from .world import Sampling

    subjects = _subjects(options)
    if options.subjects > len(subjects):
        sys.exit(f"There are {len(subjects)} such subjects; for {options.subjects} draw others with --fresh SEED.")
    sampling = Sampling(steps=2) if options.quick else Sampling()
    return [task_for(subject, options.set, options.prompts, seed, sampling, prompts)
            for seed in range(options.seeds) for subject in subjects[:options.subjects]]


def _subjects(options: argparse.Namespace) -> tuple:
    from miniature.subjects import fresh_subjects, public_subjects, tuning_subjects

    if options.fresh is not None:
        return fresh_subjects(options.subjects, options.fresh)
    return tuning_subjects() if options.tuning else public_subjects()


def _whose(options: argparse.Namespace) -> str:
    """Which subjects, as the report's folder says it; nothing for the public ones."""
    if options.fresh is not None:
        return f"-fresh-{options.fresh}"
    return "-tuning" if options.tuning else ""


def _make(harness, methods: Sequence, tasks: Sequence, options: argparse.Namespace) -> bool:
    """Makes the missing cells of this process's share; False if time or patience ended before."""
    import comfy.model_management as mm

    part, of = map(int, (options.share or "0/1").split("/"))
    timer = threading.Timer(60 * (options.minutes or 0), mm.interrupt_current_processing)
    timer.daemon = True
    if options.minutes is not None:
        timer.start()
    try:
        for task in tasks[part::of]:
            for method in methods:
                mm.throw_exception_if_processing_interrupted()
                harness.cell(method, task)
    except (KeyboardInterrupt, mm.InterruptProcessingException):
        return False
    finally:
        timer.cancel()
        mm.interrupt_current_processing(False)
    return True


def _make_in_children(options: argparse.Namespace, most: int) -> bool:
    """The same in several processes, which share the tasks."""
    count = min(options.processes, most)
    command = [sys.executable, "-m", __package__, *sys.argv[1:], "--processes", "1"]
    children = [subprocess.Popen([*command, "--share", f"{part}/{count}"]) for part in range(count)]
    return all(_ended(child) == 0 for child in children)


def _ended(child: subprocess.Popen) -> int:
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the child got Ctrl+C too, and ends
            continue


def _report(options: argparse.Namespace, technique, methods: Sequence, tasks: Sequence, harness) -> None:
    from personalize.nodes.files import write_text

    from .report import text
    from .sheet import write_sheets

    cells = dict(_there(methods, tasks, harness))
    if not cells:
        print("No cell is there yet; give it more --minutes.")
        return
    subjects, wanted = {subject for _, subject, _ in cells}, len(methods) * len(tasks)
    name = f"{options.technique}-{options.set}{_whose(options)}"
    head = (
        f"{name}: {len(cells)} of {wanted} cells, {len(subjects)} subjects, "
        f"{len(tasks[0].templates)} prompts; checkpoint {harness.world.weights[:12]}, oracle {harness.world.judge[:12]}"
    )
    kinds = {task.subject: dict(enumerate(task.kinds)) for task in tasks}
    report = f"{head}\n{text(options.technique, technique, cells, kinds)}\n"
    folder = options.out / name
    write_text(folder / "report.txt", report)
    sheets = write_sheets(folder, methods, tasks, harness.find)
    print(f"{report}{' '.join(map(str, sheets))}", flush=True)


def _there(methods: Sequence, tasks: Sequence, harness) -> Iterator[tuple]:
    """Cells by (method, subject, seed), without their pictures, which would fill the memory."""
    from .store import Cell

    for task in tasks:
        for method in methods:
            cell = harness.find(method, task)
            if cell is not None:
                yield (method.name, task.subject, task.seed), Cell(replace(cell.drawn, pictures={}), cell.verdict)


if __name__ == "__main__":
    sys.exit(main())
