"""The real ComfyUI server as a process of its own, and a client for its API."""
from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import websocket

from environment.frontend import VARIABLE as PAGE
from environment.setup import ONE_THREAD

from .failures import Event, failed, refused
from .paths import comfyui

END_EVENTS = ("execution_success", "execution_error", "execution_interrupted")
# Kept on the server, not in the browser. Without them the page opens its tutorial and asks the internet for news.
PAGE_SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Notification.ShowVersionUpdates": False,
                 "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}


@dataclasses.dataclass
class ServerRun:
    """A prompt that ran to success: its entry in the history and every message sent about it."""

    prompt_id: str
    outputs: dict[str, dict]
    events: list[Event]


class ComfyServer:
    """A server on 127.0.0.1 with its own base directory; ComfyUI's folder is not written to.

    packs: folder name in custom_nodes -> the pack's folder, linked there.
    modest: one thread of the CPU; else whatever ComfyUI takes by itself. environment: variables changed, or taken away
    by None.
    """

    def __init__(self, base: Path, packs: dict[str, Path], arguments: tuple[str, ...] = (), modest: bool = True,
                 environment: Mapping[str, str | None] = {}):
        self.base, self.log_file = base, base / "server.log"
        for folder in ("custom_nodes", "input", "output", "models/checkpoints", "user/default"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        for name, folder in packs.items():
            if not (base / "custom_nodes" / name).exists():
                (base / "custom_nodes" / name).symlink_to(folder, target_is_directory=True)
        (base / "user/default/comfy.settings.json").write_text(json.dumps(PAGE_SETTINGS))
        self.url = f"http://127.0.0.1:{_free_port()}"
        self._arguments = (*arguments, "--cpu") if modest else arguments
        self._environment = {**(ONE_THREAD if modest else {}), **environment}
        self._start()

    def _start(self, timeout: float = 180) -> None:
        command = [sys.executable, "main.py", "--listen", "127.0.0.1", "--port", self.url.rpartition(":")[2],
                   "--base-directory", str(self.base), "--database-url", f"sqlite:///{self.base}/user/comfyui.db",
                   "--disable-auto-launch", "--disable-api-nodes", *self._arguments]
        if PAGE in os.environ:
            command += ["--front-end-root", os.environ[PAGE]]
        if not any(argument.startswith("--cache-") for argument in command):
            command.append("--cache-classic")
        inherited = {name: value for name, value in os.environ.items() if name not in ONE_THREAD}
        wanted = {**inherited, **self._environment, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
        environment = {name: value for name, value in wanted.items() if value is not None}
        with open(self.log_file, "ab") as log:
            self._process = subprocess.Popen(command, cwd=comfyui(), env=environment, stdin=subprocess.DEVNULL,
                                             stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + timeout
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the ComfyUI server did not start:\n{self.log()[-3000:]}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            return self.status("/system_stats") == 200
        except OSError:
            return False

    @property
    def pid(self) -> int:
        """Of this server's process."""
        return self._process.pid

    def stop(self) -> None:
        """End this server's process."""
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def restart(self, kill: bool = False) -> None:
        """Stop and start again on the same base directory: what was only in memory is lost.

        kill: without a warning to the process, as the system ends one.
        """
        if kill:
            self._process.kill()
        self.stop()
        self._start()

    def log(self) -> str:
        """Everything the server has printed."""
        return self.log_file.read_text(errors="replace")

    def import_failures(self) -> list[str]:
        """Packs that could not be imported: the server starts all the same."""
        return re.findall(r"seconds \(IMPORT FAILED\): (.+)", self.log())

    def get(self, path: str):
        """GET; JSON is decoded, anything else is bytes."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            body = answer.read()
            return json.loads(body) if "json" in answer.headers.get("content-type", "") else body

    def status(self, path: str) -> int:
        """HTTP status of GET."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def post(self, path: str, body: object, headers: Mapping[str, str] = {}) -> tuple[int, object]:
        """POST as JSON: status and the decoded answer (None when empty)."""
        return self.post_bytes(path, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})

    def post_bytes(self, path: str, body: bytes, headers: Mapping[str, str] = {}) -> tuple[int, object]:
        """POST as it is: status and the decoded answer."""
        return _send(urllib.request.Request(self.url + path, body, dict(headers)))

    def upload(self, file: Path, subfolder: str = "", overwrite: bool = False) -> dict:
        """Upload to input/ as the page does; the server's {"name", "subfolder", "type"}."""
        boundary = uuid.uuid4().hex
        fields = {"subfolder": subfolder, "overwrite": str(overwrite).lower(), "type": "input"}
        parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
                 for name, value in fields.items()]
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{file.name}"\r\n\r\n'.encode()
        body = b"".join([*parts, head, file.read_bytes(), f"\r\n--{boundary}--\r\n".encode()])
        request = urllib.request.Request(self.url + "/upload/image", body,
                                         {"Content-Type": f"multipart/form-data; boundary={boundary}"})
        status, answer = _send(request)
        if status != 200:
            raise RuntimeError(f"upload of {file} was refused with status {status}: {answer}")
        return answer

    def view(self, file: dict) -> bytes:
        """Contents of a file as listed in a node's outputs."""
        return self.get("/view?" + urllib.parse.urlencode(file))

    def start(self, prompt: dict) -> RunningPrompt:
        """Queue a prompt in API format. Raises PromptFailed when the server refuses it."""
        return RunningPrompt(self, prompt)

    def run(self, prompt: dict, timeout: float = 300, each: Callable[[str, dict], None] | None = None) -> ServerRun:
        """Queue a prompt and wait for its end; each: called with every message about it. Raises PromptFailed."""
        return self.start(prompt).wait(timeout, each)

    def interrupt(self) -> None:
        """What the page's stop button does."""
        self.post("/interrupt", {})


class RunningPrompt:
    """A queued prompt, followed over the websocket."""

    def __init__(self, server: ComfyServer, prompt: dict):
        self._server, self.events = server, []
        client = uuid.uuid4().hex
        self._socket = websocket.create_connection(f"{server.url.replace('http', 'ws', 1)}/ws?clientId={client}",
                                                   timeout=60)
        status, answer = server.post("/prompt", {"prompt": prompt, "client_id": client})
        if status != 200:
            self._socket.close()
            raise refused(answer["error"], answer["node_errors"])
        self.prompt_id: str = answer["prompt_id"]

    def close(self) -> None:
        """Follow it no more."""
        self._socket.close()

    def next_event(self, timeout: float = 60) -> Event:
        """The next message about this prompt; a binary one (a preview) is ("binary", {"bytes": ...})."""
        self._socket.settimeout(timeout)
        while True:
            message = self._socket.recv()
            if isinstance(message, bytes):
                event = ("binary", {"bytes": message})
            else:
                message = json.loads(message)
                event = (message["type"], message["data"])
                if event[1].get("prompt_id", self.prompt_id) != self.prompt_id:
                    continue
            self.events.append(event)
            return event

    def wait_for(self, name: str, timeout: float = 60) -> dict:
        """Data of the next message of this name."""
        deadline = time.monotonic() + timeout
        while True:
            event, data = self.next_event(max(0.1, deadline - time.monotonic()))
            if event == name:
                return data
            if event in END_EVENTS:
                raise RuntimeError(f"the prompt ended with {event} while waiting for {name}")

    def wait(self, timeout: float = 300, each: Callable[[str, dict], None] | None = None) -> ServerRun:
        """Wait for the end; each: called with every message. Raises PromptFailed unless it is a success."""
        deadline = time.monotonic() + timeout
        # execution_success comes before the history is written, this one after it
        end = ("executing", {"node": None, "prompt_id": self.prompt_id})
        while (event := self.next_event(max(0.1, deadline - time.monotonic()))) != end:
            if each:
                each(*event)
        self._socket.close()
        if not any(name == "execution_success" for name, _ in self.events):
            raise failed(self.events)
        entry = self._server.get(f"/history/{self.prompt_id}")[self.prompt_id]
        return ServerRun(self.prompt_id, entry["outputs"], self.events)


def _send(request: urllib.request.Request) -> tuple[int, object]:
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, body = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read()
    try:
        return status, json.loads(body) if body else None
    except ValueError:
        return status, body.decode(errors="replace")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
