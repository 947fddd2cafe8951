"""ComfyUI's real PromptExecutor in this process, with all core nodes and the pack's."""
from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import inspect
import uuid

import torch

from .failures import Event, failed, refused


@dataclasses.dataclass
class Run:
    """What a prompt that ran to success left behind."""

    values: dict[str, object]
    ui: dict[str, dict]
    events: list[Event]
    progress: list[tuple[int, int, object]]

    @property
    def cached(self) -> list[str]:
        """Ids of the nodes whose results came from the cache."""
        return [node for name, data in self.events if name == "execution_cached" for node in data["nodes"]]


class _AnyType(str):
    def __ne__(self, other):
        return False


class _Capture:
    """A test-only output node that keeps what it is given."""

    values: dict[str, object] = {}
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE, INPUT_IS_LIST = (), "capture", "tests", True, True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (_AnyType("*"),), "name": ("STRING", {})}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def capture(self, value, name):
        self.values[name[0]] = value[0] if len(value) == 1 else value
        return ()


class _Client:
    """Stands where PromptExecutor expects the server: it keeps the messages a page would get."""

    def __init__(self):
        self.client_id = "tests"
        self.last_node_id = self.last_prompt_id = self.prompt_queue = None
        self.sockets_metadata: dict = {}
        self.events: list[Event] = []

    def send_sync(self, event, data, sid=None):
        self.events.append((event, data))


class ComfyExecutor:
    """Runs prompts in API format. As in the server, one worker thread executes them under inference mode."""

    def __init__(self):
        self._progress: list[tuple[int, int, object]] = []
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "comfyui", lambda: torch.set_num_threads(1))
        self._loop = asyncio.new_event_loop()
        self._worker.submit(self._set_up).result()

    def __call__(self, prompt: dict, get: dict[str, list] | None = None, timeout: float = 300) -> Run:
        """Run `prompt` with an empty cache. `get` names outputs wanted in `Run.values`: {"concept": ["5", 0]}.

        Raises PromptFailed.
        """
        return self.submit(prompt, get).result(timeout)

    def submit(self, prompt: dict, get: dict[str, list] | None = None) -> concurrent.futures.Future:
        """Start `prompt` and return at once; the future gives the Run."""
        return self.session().submit(prompt, get)

    def session(self) -> _Session:
        """A caller like this one whose prompts share ComfyUI's (classic) cache of node results."""
        return _Session(self)

    def load_pack(self, folder) -> None:
        """Let ComfyUI load a pack of its folder custom_nodes. Raises RuntimeError; the cause is in the log."""
        import nodes

        if not self._worker.submit(lambda: self._finish(nodes.load_custom_node(str(folder)))).result():
            raise RuntimeError(f"ComfyUI could not load {folder}")

    def close(self) -> None:
        """End the worker thread."""
        self._worker.submit(self._loop.close).result()
        self._worker.shutdown()

    def _set_up(self) -> None:
        import comfy.utils
        import nodes
        import server

        asyncio.set_event_loop(self._loop)
        server.PromptServer(self._loop)
        self._finish(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
        self._finish(_register_pack(nodes))
        nodes.NODE_CLASS_MAPPINGS["TestCapture"] = _Capture
        comfy.utils.set_progress_bar_global_hook(self._on_progress)

    def _finish(self, result):
        return self._loop.run_until_complete(result) if inspect.isawaitable(result) else result

    def _on_progress(self, value, total, preview=None, **_):
        import comfy.model_management

        comfy.model_management.throw_exception_if_processing_interrupted()
        self._progress.append((value, total, preview))

    def _run(self, executor, client: _Client, prompt: dict, get: dict[str, list]) -> Run:
        import execution

        captures = {f"capture {name}": {"class_type": "TestCapture", "inputs": {"value": link, "name": name}}
                    for name, link in get.items()}
        prompt, prompt_id = {**prompt, **captures}, str(uuid.uuid4())
        valid, error, outputs, node_errors = self._finish(execution.validate_prompt(prompt_id, prompt, None))
        if not valid:
            raise refused(error, node_errors)
        client.events, self._progress, _Capture.values = [], [], {}
        executor.execute(prompt, prompt_id, {"client_id": client.client_id}, outputs)
        events = client.events
        if not executor.success:
            raise failed(events)
        return Run(_Capture.values, executor.history_result["outputs"], events, self._progress)


class _Session:
    def __init__(self, owner: ComfyExecutor):
        import execution

        self._owner, self._client = owner, _Client()
        self._executor = execution.PromptExecutor(self._client, cache_type=execution.CacheType.CLASSIC,
                                                  cache_args={"lru": 0, "ram": 0, "ram_inactive": 0})

    def __call__(self, prompt: dict, get: dict[str, list] | None = None, timeout: float = 300) -> Run:
        return self.submit(prompt, get).result(timeout)

    def submit(self, prompt: dict, get: dict[str, list] | None = None) -> concurrent.futures.Future:
        return self._owner._worker.submit(self._owner._run, self._executor, self._client, prompt, get or {})


async def _register_pack(nodes) -> None:
    import personalize

    extension = await personalize.comfy_entrypoint()
    for node in await extension.get_node_list():
        nodes.NODE_CLASS_MAPPINGS[node.GET_SCHEMA().node_id] = node
        node.RELATIVE_PYTHON_MODULE = "custom_nodes.personalize"
