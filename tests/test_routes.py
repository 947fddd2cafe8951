"""What the pack's own addresses answer: sentences to requests of every kind, of bounded length, off the event loop."""
from __future__ import annotations

import asyncio
import base64
import json
import math
import shutil
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import folder_paths
import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image
from safetensors.torch import save_file

from personalize.nodes import page_texts
from personalize.nodes.page import LARGEST_BODY
from personalize.nodes.papers.detex import routes as detex_routes
from personalize.nodes.training import picture_routes, progress, routes
from personalize.nodes.training.picture_files import FolderContents
from personalize.nodes.training.progress import RECORDS_SHOWN, RUNS, Live, Origin, shown_report
from personalize.nodes.training.run_folder import RunFolder
from support.detex_files import write
from support.subject_page import png

MEGABYTES_100 = 100 * 2**20


def ask(*requests, seconds=60):
    """(status, JSON) of each request (method, path, arguments), asked at the same time of a server of aiohttp."""
    async def one(client, method, path, **arguments):
        async with client.request(method, path, **arguments) as answer:
            assert answer.content_type == "application/json", await answer.text()
            return answer.status, await answer.json()

    async def all_of_them():
        app = web.Application()
        app.add_routes([*page_texts.ROUTES, *routes.ROUTES, *picture_routes.ROUTES, *detex_routes.ROUTES])
        async with TestClient(TestServer(app)) as client:
            return await asyncio.wait_for(asyncio.gather(*(
                one(client, method, path, **arguments) for method, path, arguments in requests)), seconds)

    with ThreadPoolExecutor(1) as thread:  # in this one a test of the page may have left its event loop
        return thread.submit(asyncio.run, all_of_them()).result()


def command(body, **arguments):
    return ask(("POST", "/personalize/command", {"data": body, **arguments}))[0]


async def endless():
    """100 MB without a Content-Length."""
    for _ in range(100):
        yield bytes(2**20)


@pytest.mark.parametrize("body", [
    b"", b"stop", b"null", b"3", b"[]", b'"stop"', b"{}", b'{"run": "x"}', b'{"command": "stop"}', b"\xff\xfe{}",
    b"\x00", b'{"run": null, "command": "stop"}', b'{"run": ["x"], "command": "stop"}', b'{"run": NaN}',
    b'{"run": "x", "command": {}}', b'{"run": "x", "command": "STOP"}', b"[" * 60000,
    b'{"run": "x", "command": "' + b"a" * 1000 + b'"}'])
def test_a_body_that_is_no_command_gets_a_sentence(body):
    status, answer = command(body)
    assert status == 400 and answer["ok"] is False
    assert answer["message"].endswith(".") and len(answer["message"]) < 200


@pytest.mark.parametrize("run", ["gone", "", "../../etc/passwd", "\0", "<b>x</b>", "\ud800", "x" * 50000])
def test_a_command_to_no_run_gets_a_sentence(run):
    status, answer = command(json.dumps({"run": run, "command": "stop"}).encode())
    assert status == 404 and answer["message"].endswith("is not in progress.") and len(answer["message"]) < 200


@pytest.mark.parametrize("body", [bytes(LARGEST_BODY + 1), bytes(MEGABYTES_100), endless],
                         ids=["over", "100 MB", "endless"])
def test_a_long_body_is_not_read(body):
    status, answer = command(body() if body is endless else body)
    assert status == 413 and answer == {"ok": False, "message": "The request's body is longer than 64 KB."}


@pytest.mark.smoke
def test_a_command_reaches_its_run_and_no_other():
    runs = [Origin("mine-12345678", "a", "4"), Origin("other-12345678", "b", "5")]
    with Live(runs[0], 5) as mine, Live(runs[1], 5) as other:
        status, answer = command(b'{"run": "mine-12345678", "command": "save"}')
        assert (status, answer["ok"]) == (200, True)
        assert mine.take("save") and not mine.take("save") and not other.take("save")
    with Live(Origin("next-12345678", "a", "4"), 5):
        (_, listed), = ask(("GET", "/personalize/runs", {}))
    assert {"run": "next-12345678", "workflow": "a", "node": "4", "running": True} in listed
    assert {"run": "other-12345678", "workflow": "b", "node": "5", "running": False} in listed
    assert "mine-12345678" not in {entry["run"] for entry in listed}, "the node has begun another run"


def test_a_run_that_ends_leaves_a_newer_one_of_its_name():
    with Live(Origin("same-12345678", "", "1"), 5):
        with Live(Origin("same-12345678", "", "2"), 5) as newer:
            pass
        assert RUNS.find("same-12345678") is None
        with newer:
            pass
    assert RUNS.find("same-12345678") is None


@pytest.mark.parametrize("run", ["../x", "a/../../x", "C:/x", "/etc", "%00", "%ff", "%2e%2e%2fx", "a" * 5000, "🐕",
                                 "?"])
def test_a_run_that_is_not_there(run):
    path = "/personalize/runs/" + urllib.parse.quote(run, safe="%")
    (status, answer), = ask(("GET", path, {}))
    assert status == 200 and answer["history"] == [] or status == 400 and answer["ok"] is False, answer


@pytest.mark.parametrize("folder", ["..", "/etc", "\0", "a\0b", "a" * 5000, "\ud800", "nothing-here", "C:\\x", "%ff"])
def test_a_folder_that_is_not_there(folder):
    query = urllib.parse.quote(folder.encode("utf-8", "surrogatepass"))
    (status, answer), = ask(("GET", f"/personalize/pictures?folder={query}", {}))
    assert status == 200 and answer["pictures"] == [] and answer["place"] == "nowhere"
    assert "input folder" in answer["message"] and answer["message"].endswith(".")


@pytest.mark.parametrize("path", ["/personalize/pictures?folder=%", "/personalize/pictures?folder=%ff%00",
                                  "/personalize/pictures?folder=a&folder=b", "/personalize/pictures?%ff=%zz"])
def test_a_query_that_is_no_text_gets_an_answer(path):
    (status, answer), = ask(("GET", path, {}))
    assert status == 200 and answer["pictures"] == []


@pytest.fixture
def detex_folder():
    folder = Path(folder_paths.get_folder_paths("detex")[0])
    write(folder / "routes" / "attributes.safetensors", [png("red"), png("blue", (90, 64))], "view")
    yield folder
    shutil.rmtree(folder / "routes")


def test_the_training_pictures_of_a_detex_file(detex_folder):
    (status, answer), = ask(("GET", "/personalize/detex/pictures?file=routes/attributes.safetensors", {}))
    assert status == 200 and (answer["count"], answer["pose_is"], answer["message"]) == (2, "view", "")
    pictures = [Image.open(BytesIO(base64.b64decode(each.removeprefix("data:image/jpeg;base64,"))))
                for each in answer["pictures"]]
    assert [picture.size for picture in pictures] == [(64, 64), (90, 64)]


@pytest.mark.parametrize("name", [
    "", "..", "../checkpoints/sd15.safetensors", "routes/../routes/attributes.safetensors", "/etc/passwd", "\0",
    "a" * 5000, "\ud800", "C:\\x", "%ff", "routes", "routes\\..\\x"])
def test_a_detex_file_that_is_not_there(detex_folder, name):
    query = urllib.parse.quote(name.encode("utf-8", "surrogatepass"))
    (status, answer), = ask(("GET", f"/personalize/detex/pictures?file={query}", {}))
    assert status == 200 and (answer["pictures"], answer["count"]) == ([], 0)
    assert answer["message"].startswith("There is no file") and len(answer["message"]) < 400


def test_a_file_that_is_none_of_detex_is_named(detex_folder):
    save_file({"a": torch.ones(1)}, detex_folder / "routes" / "other.safetensors")
    (status, answer), = ask(("GET", "/personalize/detex/pictures?file=routes/other.safetensors", {}))
    assert status == 200 and answer["message"].startswith("other.safetensors is no file of DETEX")


def test_a_large_folder_is_shown_in_part():
    folder = Path(folder_paths.get_input_directory()) / "many"
    folder.mkdir()
    for number in range(2000):
        (folder / f"{number}.png").touch()
    (status, answer), = ask(("GET", "/personalize/pictures?folder=many", {}))
    assert status == 200 and answer["count"] == 2000 and len(json.dumps(answer)) < 2**16
    assert answer["pictures"] == [f"{number}.png" for number in range(500)]
    assert answer["message"].startswith("Folder 'many' holds 2000 pictures; the first 500 are shown.")


@pytest.mark.parametrize("path, function", [("/personalize/pictures?folder=x", (picture_routes, "folder_contents")),
                                            ("/personalize/runs/x", (routes, "saved_report"))])
def test_files_are_read_while_others_are_answered(path, function, monkeypatch, tmp_path):
    """The reading ends only when another request has been answered, so on the event loop it would never end."""
    other_answered, module_and_name = threading.Event(), function
    real = getattr(*module_and_name)

    def slow(*arguments):
        assert other_answered.wait(20)
        return real(*arguments) if module_and_name[1] == "saved_report" else FolderContents((tmp_path / "1.png",))

    monkeypatch.setattr(*module_and_name, slow)
    monkeypatch.setattr(picture_routes, "picture_folder", lambda _: tmp_path)

    async def other(request):
        other_answered.set()
        return web.json_response({})

    monkeypatch.setattr(routes, "ROUTES", [*routes.ROUTES, web.get("/other", other)])
    (status, answer), _ = ask(("GET", path, {}), ("GET", "/other", {}), seconds=30)
    assert status == 200 and "message" in answer


def record(step, total):
    norms = {"diffusion|embedding": 0.5} if step % 10 == 0 else {}
    return {"step": step, "total": total, "loss": 1 / step, "parts": {"diffusion": 1 / step}, "norms": norms,
            "lr": {"embedding": 1e-3}, "seconds_left": 1.5}


@pytest.mark.parametrize("steps", [0, 1, RECORDS_SHOWN, RECORDS_SHOWN + 1, 1999, 100_000])
def test_a_long_history_is_shown_in_part(steps):
    history = [record(step, steps) for step in range(1, steps + 1)]
    report = {"run": "long-12345678", "history": history, "previews": [], "saved": [], "message": "Done."}
    shown = shown_report(report)
    assert {**shown, "history": history} == report
    numbers = [each["step"] for each in shown["history"]]
    assert numbers == sorted(set(numbers)) and len(numbers) <= RECORDS_SHOWN
    if steps:
        assert numbers[0] == 1 and numbers[-1] == steps
        assert max(after - before for before, after in zip(numbers, numbers[1:] or numbers)) <= 2 * -(-steps // 998)
    if steps <= RECORDS_SHOWN:
        assert numbers == list(range(1, steps + 1))
    if steps == 100_000:
        assert len(json.dumps(shown)) < 2**18 and all(each["norms"] for each in shown["history"][1:-2])


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '{"history": 3}', '{"history": [1, null]}', '{"saved": {}}',
                                  "[" * 10**5, '{"message": 5}', "\0", '{"run": null}'])
def test_a_damaged_report_is_none(text):
    folder = RunFolder("damaged", "12345678")
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder.path / "report.json").write_text(text)
    (status, answer), = ask(("GET", f"/personalize/runs/{folder.run}", {}))
    assert status == 200
    assert {name: type(value) for name, value in answer.items()} == {"run": str, "history": list, "previews": list,
                                                                     "saved": list, "message": str,
                                                                         "stopped": dict}
    assert all(isinstance(each, dict) for each in answer["history"])


@pytest.mark.parametrize("asked, given", [("zh", {"en", "zh"}), ("en", {"en"}), ("xx", {"en"}),
                                          ("../nodes", {"en"}), ("a" * 1000, {"en"})])
def test_the_pages_texts_come_in_english_and_in_the_language_asked_for_where_there_is_one(asked, given):
    status, answer = ask(("GET", f"/personalize/texts/{urllib.parse.quote(asked, safe='')}", {}))[0]
    assert status == 200 and answer.keys() == given
    assert len({texts["command"]["stop"] for texts in answer.values()}) == len(given)


@pytest.mark.parametrize("seconds, messages", [(0.01, 5), (0.1, 34), (1.0, 100)])
def test_every_step_is_told_once_and_fast_ones_together(seconds, messages, monkeypatch):
    told, now = [], 0
    monkeypatch.setattr(progress, "tell", lambda event, data: told.append(data))
    monkeypatch.setattr(progress.time, "monotonic", lambda: 100 + seconds * now)
    with Live(Origin("fast-12345678", "a", "1"), 100) as live:
        for now in range(1, 101):
            live.step({"step": now, "total": 100, "loss": math.nan})
            if now == 50:
                live.send("saved", step=50)
    steps = [record["step"] for message in told if message["kind"] == "steps" for record in message["records"]]
    assert steps == list(range(1, 101)) and all(record["loss"] is None for record in live.report["history"])
    at = [message["kind"] for message in told].index("saved")
    assert told[at - 1]["records"][-1]["step"] == 50, "what is saved is told after its step"
    assert len(told) - 1 == pytest.approx(messages, abs=2)
