"""CI's queue of test runs: which reports are printed, and which exit status comes of them."""
from __future__ import annotations

import re
import sys
from pathlib import Path

from environment.jobs import Job, run_queue
from environment.setup import Environment
from support.paths import comfyui

PASSES = "def test_passes():\n    print('seen')\n"
FAILS = "def test_fails():\n    assert 2 + 2 == 5\n"


def a_job(folder: Path, name: str, code: str) -> Job:
    file = folder / f"test_{name}.py"
    file.write_text(code)
    return Job(name, Environment(comfyui(), "0", Path(sys.executable)), ["-p", "no:cacheprovider", str(file)])


def test_reports_are_printed_whole_and_failures_named_at_the_end(tmp_path, capfd):
    jobs = [a_job(tmp_path, "first", FAILS), a_job(tmp_path, "second", PASSES), a_job(tmp_path, "third", FAILS)]
    assert run_queue(jobs, workers=2) == 1
    printed = capfd.readouterr().out
    reports = re.findall(r"test session starts.*?(?:1 passed|1 failed) in", printed, re.DOTALL)
    assert len(reports) == 3 and all(report.count("collected 1 item") == 1 for report in reports)
    end = printed[printed.index("failed: "):]
    assert sorted(re.findall(r"failed: (\w+)", end)) == ["first", "third"]
    assert re.findall(r"FAILED \S+::(\w+)", end) == ["test_fails", "test_fails"]


def test_passes_when_every_job_does(tmp_path, capfd):
    assert run_queue([a_job(tmp_path, "only", PASSES)], workers=2) == 0
    assert "failed" not in capfd.readouterr().out
