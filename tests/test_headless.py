"""The pack in a process that runs ComfyUI as a library, without its server."""
from __future__ import annotations

import json
import subprocess
import sys

import pytest

from support.paths import TESTS


@pytest.fixture(scope="module")
def headless(tmp_path_factory):
    """(what the process told, its log)."""
    command = [sys.executable, str(TESTS / "support" / "headless.py"), str(tmp_path_factory.mktemp("headless"))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_every_node_registers_without_a_server(headless, node_classes):
    assert headless[0]["nodes"] == [node.GET_SCHEMA().node_id for node in node_classes]


def test_training_runs_without_a_server_and_reports_to_the_log(headless):
    told, log = headless
    assert told["steps"] == 2 and told["message"].startswith("Step 2 of 2 is saved: ")
    assert "step 1 of 2, loss " in log and "step 2 of 2, loss " in log
    assert told["message"] in log
    assert "WARNING personalize A sentence for the log." in log
