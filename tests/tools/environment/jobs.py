"""Runs of pytest that wait in one queue, taken by some workers."""
from __future__ import annotations

import dataclasses
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from .report import say
from .setup import TESTS, Environment


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of pytest: in which environment, with which options and more variables of the process environment.

    yields: takes the time that other runs leave, as those of a page do while they wait for it.
    """

    name: str
    environment: Environment
    options: list[str]
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    yields: bool = False


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a job's run printed, its exit status and the minutes it took."""

    job: Job
    report: str
    status: int
    minutes: float

    def failures(self) -> list[str]:
        """The lines of pytest's summary that name tests which failed."""
        return [line for line in self.report.splitlines() if line.startswith(("FAILED ", "ERROR "))]


def run_pytest(job: Job, output=None) -> int:
    """Run it on the screen, or into the open file `output`; its exit status."""
    say(f"{job.name}: testing with ComfyUI {job.environment.version} in {job.environment.comfyui}")
    paths = [] if any(Path(option.partition("::")[0]).exists() for option in job.options) else [str(TESTS)]
    command = [str(job.environment.python), "-m", "pytest", "-c", str(TESTS / "pytest.ini"), *job.options, *paths]
    if job.yields and shutil.which("nice"):
        command = ["nice", "-n", "10", *command]
    variables = {**job.environment.variables(), **job.variables}
    return subprocess.run(command, check=False, env=variables, stdout=output, stderr=output).returncode


def run_queue(jobs: list[Job], workers: int) -> int:
    """Run the jobs in their order, `workers` at a time, and print each report whole when its run ends. Returns the
    first exit status that is not 0, else 0."""
    failed: list[Ended] = []
    with ThreadPoolExecutor(workers) as pool:
        for future in as_completed([pool.submit(_run, job) for job in jobs]):
            ended = future.result()
            say(f"{ended.job.name}: ended after {ended.minutes:.1f} minutes with status {ended.status}")
            print(ended.report, flush=True)
            if ended.status:
                failed.append(ended)
    for ended in failed:
        say(f"failed: {ended.job.name}")
        print("\n".join(ended.failures()), flush=True)
    return failed[0].status if failed else 0


def _run(job: Job) -> Ended:
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        status = run_pytest(job, output)
        output.seek(0)
        return Ended(job, output.read(), status, (time.monotonic() - start) / 60)
