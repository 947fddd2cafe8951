"""Two servers that train one word into one models folder at the same time, in places and under settings that are
rare."""
from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import folder_paths
import pytest
import torch

from personalize.nodes.text import embedding_files
from personalize.nodes.text.embedding_files import load_embedding, save_embedding
from support import inprocess
from support.paths import PACK, TESTS
from support.training_page import TRAIN_NODE, training_prompt

PACKS = {"personalize": PACK, "tiny_models": TESTS / "tiny"}


@pytest.fixture(scope="module")
def servers(start_server, tmp_path_factory):
    """A folder whose name has a space and letters of two scripts; one server for several users without a cache, one
    without a home, in another time zone and with a cache of two results, both with all their folders there."""
    base = tmp_path_factory.mktemp("servers") / "Zoë's 犬 folder"
    base.mkdir()
    first = start_server(PACKS, ("--multi-user", "--cache-none", "--deterministic"), base)
    inprocess.provide_checkpoint("sd15", base)
    options = ("--cache-lru", "2", "--enable-compress-response-body", "--database-url", "sqlite:///:memory:")
    second = start_server(PACKS, options, base, environment={"HOME": None, "TZ": "Pacific/Apia", "LC_ALL": "C"})
    assert first.import_failures() == second.import_failures() == []
    return first, second


def files_below(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_same_training_at_once_ends_in_one_result(servers):
    """Same settings: one run, whose files both write."""
    running = [server.start(training_prompt("same", steps=4, save_every=1, preview_every=2)) for server in servers]
    reports = [each.wait().outputs[TRAIN_NODE]["personalize_training"][0] for each in running]
    assert reports[0]["run"] == reports[1]["run"]
    base, run = servers[0].base, reports[0]["run"]
    assert files_below(base / "models/embeddings" / run) == [f"dog-{step:06d}.safetensors" for step in (1, 2, 3, 4)]
    saved = json.loads((base / "output/personalize" / run / "report.json").read_text("utf-8"))
    assert [record["step"] for record in saved["history"]] == [1, 2, 3, 4]
    assert [entry["step"] for entry in saved["saved"]] == [1, 2, 3, 4]
    assert [record["loss"] for record in reports[0]["history"]] == [record["loss"] for record in reports[1]["history"]]
    nobody_left_anything(base)


def test_other_trainings_of_a_word_at_once_keep_both_results(servers):
    """Two prompts a server, queued one after the other; Save Concept writes "learned" at the end of each."""
    base = servers[0].base
    before = files_below(base / "models/embeddings")
    queued = [server.start(training_prompt(f"seed-{seed}", seed=seed))
              for seed, server in zip((1, 2, 3, 4), (*servers, *servers))]
    runs = [each.wait().outputs[TRAIN_NODE]["personalize_training"][0] for each in queued]
    assert len({each["run"] for each in runs}) == 4
    added = [base / "models/embeddings" / name
             for name in files_below(base / "models/embeddings") if name not in before]
    learned = [load_embedding(path)[0]["clip_l"] for path in added if "learned" in path.name]
    in_runs = [load_embedding(path)[0]["clip_l"] for path in added if "learned" not in path.name]
    assert len(learned) == len(in_runs) == 4
    assert all(any(torch.equal(one, other) for other in learned) for one in in_runs)
    nobody_left_anything(base)


def nobody_left_anything(base) -> None:
    assert [name for name in files_below(base) if ".tmp" in name] == []


def test_the_pages_addresses_need_no_user(servers):
    """With --multi-user too, under every name; the pictures of all users lie in one input folder."""
    _, zoe = servers[0].post("/users", {"username": "Zoë"})
    for headers in ({}, {"comfy-user": zoe}, {"comfy-user": "nobody"}):
        status, answer = servers[0].post("/api/personalize/command", {"run": "x", "command": "stop"}, headers)
        assert (status, answer["message"]) == (404, "The run 'x' is not in progress.")


def test_odd_requests_get_sentences_from_the_real_server(servers):
    for body, expected in ((b"", 400), (b"[1]", 400), (b"null", 400), (bytes(2**26), 413)):
        status, answer = servers[1].post_bytes("/personalize/command", body)
        assert (status, answer["ok"]) == (expected, False) and answer["message"].endswith(".")
    assert servers[1].status("/personalize/pictures?folder=%00") == 200


def test_a_run_outlives_its_page_and_ends_by_interrupt(servers):
    """The page goes and another comes; freeing memory while it trains changes nothing; the stop button keeps the
    work."""
    server = servers[0]
    running = server.start(training_prompt("left-alone", steps=5000, resume="continue"))
    while running.wait_for("personalize.training")["kind"] != "steps":
        pass
    running._socket.close()
    (entry,) = in_progress(server)
    assert entry["run"].startswith("left-alone-") and entry["node"] == TRAIN_NODE
    assert server.post("/free", {"unload_models": True, "free_memory": True})[0] == 200
    seen = server.get(f"/personalize/runs/{entry['run']}")["history"][-1]["step"]
    while server.get(f"/personalize/runs/{entry['run']}")["history"][-1]["step"] <= seen + 2:
        pass
    server.interrupt()
    while in_progress(server):
        pass
    report = server.get(f"/personalize/runs/{entry['run']}")
    assert f"Step {report['history'][-1]['step']} of 5000 is saved" in report["message"]
    again = server.run(training_prompt("left-alone", steps=report["history"][-1]["step"] + 1, resume="continue"))
    told = [data for name, data in again.events if name == "personalize.training" and data["kind"] == "steps"]
    assert [record["step"] for data in told for record in data["records"]] == [report["history"][-1]["step"] + 1]
    nobody_left_anything(server.base)


def in_progress(server) -> list[dict]:
    return [entry for entry in server.get("/personalize/runs") if entry["running"]]


@pytest.mark.parametrize("same", [False, True], ids=["other vectors", "the same vectors"])
def test_two_that_save_one_name_at_once_keep_both(tmp_path, monkeypatch, same):
    """Each has seen that the name is free before either writes."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([str(tmp_path)], {".safetensors"}))
    together, write = threading.Barrier(2, timeout=20), embedding_files.write_safetensors

    def at_once(path, *arguments, **options):
        if path.name == "dog.safetensors":
            together.wait()
        return write(path, *arguments, **options)

    monkeypatch.setattr(embedding_files, "write_safetensors", at_once)
    vectors = [{"clip_l": torch.full((count, 768), 0.5)} for count in ((1, 1) if same else (1, 2))]
    with ThreadPoolExecutor(2) as threads:
        paths = list(threads.map(lambda each: save_embedding("dog", each, {}), vectors))
    assert len(set(paths)) == (1 if same else 2)
    for path, expected in zip(paths, vectors, strict=True):
        assert torch.equal(load_embedding(path)[0]["clip_l"], expected["clip_l"])
