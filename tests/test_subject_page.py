"""The Subject node in the real page: dropped or chosen pictures are uploaded, shown, kept in the workflow, and used."""
from __future__ import annotations

import itertools
import shutil
import unicodedata
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from support.browser import open_page
from support.page_scripts import NODE_BOX
from support.subject_page import DOGS, PROMPT, opened, png

# A change that the page can undo.
CHANGE_TITLE = """() => {
    const tracker = window.app.extensionManager.workflow.activeWorkflow.changeTracker;
    const remember = () => (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
    remember();
    window.app.graph.getNodeById('2').title = 'Another';
    remember();
}"""
REFUSE_UPLOADS = """refuse => {
    const api = window.comfyAPI.api.api;
    delete api.fetchApi;
    const fetchApi = api.fetchApi.bind(api);
    if (refuse) api.fetchApi = async (route, ...rest) =>
        route === '/upload/image' ? new Response('', {status: 413}) : fetchApi(route, ...rest);
}"""


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def ui(request, browser, server):
    """One page for all tests here, with classic nodes and with Nodes 2.0: opening it takes longer than any of them."""
    with open_page(browser, server, nodes2=request.param == "nodes2") as page:
        yield page
        assert page.unexpected_messages() == []


@pytest.fixture(autouse=True)
def empty_inputs(server, ui):
    yield
    ui.page.wait_for_function("() => [...document.images].every(image => image.complete)")
    ui.js("() => window.app.graph.clear()")  # so that nothing asks for pictures that are no longer there
    for path in (server.base / "input").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def colours(ui, run) -> list[tuple[int, ...]]:
    pictures = [Image.open(BytesIO(ui.server.view(file))) for file in run.outputs["3"]["images"]]
    return [tuple(np.asarray(picture)[32, 32]) for picture in pictures]


def test_dropped_pictures_are_uploaded_shown_and_used(ui, server):
    tray = opened(ui)
    assert tray.names() == [] and "Drop 4 or 5 pictures" in tray.root.inner_text()
    tray.drop({**DOGS, "green.txt": b"{} in the garden"})
    tray.wait_for(["blue.png", "green.png", "red.png"])
    assert (tray.widgets()["folder"], tray.widgets()["picture_files"]) == ("my-dog", "")
    folder = server.base / "input" / "my-dog"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {**DOGS, "green.txt": b"{} in the garden"}
    run = ui.run()
    assert run.status == "success", run
    assert colours(ui, run) == [(0, 0, 255), (0, 255, 0), (255, 0, 0)]


def test_chosen_with_the_file_dialogue(ui, tmp_path):
    tray = opened(ui)
    for name, data in DOGS.items():
        (tmp_path / name).write_bytes(data)
    with ui.page.expect_file_chooser() as chooser:
        tray.root.get_by_text("Choose pictures").click()
    chooser.value.set_files([tmp_path / name for name in DOGS])
    tray.wait_for(sorted(DOGS))


def test_a_removed_picture_is_not_used_but_kept(ui, server):
    tray = opened(ui)
    tray.drop(DOGS)
    tray.wait_for(sorted(DOGS))
    item = tray.root.locator("[data-name='green.png']")
    item.hover()
    item.get_by_role("button", name="Do not use green.png").click()
    tray.wait_for(["blue.png", "red.png"])
    assert tray.widgets()["picture_files"] == "blue.png\nred.png"
    assert (server.base / "input/my-dog/green.png").is_file()
    run = ui.run()
    assert colours(ui, run) == [(0, 0, 255), (255, 0, 0)]
    tray.drop({"pink.png": png("magenta")})
    tray.wait_for(["blue.png", "red.png", "pink.png"])
    tray.root.get_by_text("Use all 4").click()
    tray.wait_for(["blue.png", "green.png", "pink.png", "red.png"])
    assert tray.widgets()["picture_files"] == ""


def test_removing_the_last_picture_empties_the_node(ui):
    tray = opened(ui)
    tray.drop({"red.png": DOGS["red.png"]})
    tray.wait_for(["red.png"])
    tray.root.get_by_role("button", name="Do not use red.png").click()
    tray.wait_for([])
    assert (tray.widgets()["folder"], tray.widgets()["picture_files"]) == ("", "")


def test_saved_workflow_shows_the_same_pictures_again(ui):
    tray = opened(ui)
    tray.drop(DOGS)
    tray.wait_for(sorted(DOGS))
    tray.root.locator("[data-name='red.png']").hover()
    tray.root.get_by_role("button", name="Do not use red.png").click()
    tray.wait_for(["blue.png", "green.png"])
    workflow, prompt = ui.workflow(), ui.prompt()
    assert set(prompt["2"]["inputs"]) == set(PROMPT["2"]["inputs"]), "the thumbnails are not part of the prompt"
    ui.command("Comfy.NewBlankWorkflow")
    ui.open(nodes2=ui.js("() => !!window.LiteGraph.vueNodesMode"))
    assert ui.load_workflow(workflow).problems == {}
    tray.wait_for(["blue.png", "green.png"])
    assert ui.prompt() == prompt


def test_a_second_subject_gets_a_folder_of_its_own(ui, server):
    (server.base / "input/my-dog").mkdir()
    (server.base / "input/my-dog/old.png").write_bytes(DOGS["red.png"])
    tray = opened(ui)
    tray.drop({"new.png": DOGS["blue.png"]})
    tray.wait_for(["new.png"])
    assert tray.widgets()["folder"] == "my-dog-2"
    assert [path.name for path in (server.base / "input/my-dog").iterdir()] == ["old.png"]


def test_another_picture_of_the_same_name_is_kept_beside_the_first(ui, server):
    tray = opened(ui)
    tray.drop({"dog.png": DOGS["red.png"]})
    tray.wait_for(["dog.png"])
    tray.drop({"dog.png": DOGS["blue.png"], "dog.txt": b"a blue {}"})
    tray.wait_for(["dog (1).png", "dog.png"])
    assert (server.base / "input/my-dog/dog (1).txt").read_bytes() == b"a blue {}"
    assert (server.base / "input/my-dog/dog.png").read_bytes() == DOGS["red.png"]


def test_a_folder_chosen_in_the_list_is_shown(ui, server):
    (server.base / "input/cats").mkdir()
    for name, data in DOGS.items():
        (server.base / "input/cats" / name).write_bytes(data)
    tray = opened(ui)
    ui.set_widget("2", "folder", "cats")
    tray.wait_for(sorted(DOGS))
    ui.set_widget("2", "folder", "")
    tray.wait_for([])


def test_example_pictures_are_shown_used_and_never_added_to(ui):
    tray = opened(ui, folder="example-toy")
    names = [f"toy-{n}.jpg" for n in range(1, 6)]
    tray.wait_for(names)
    assert len(ui.run().outputs["3"]["images"]) == 5
    tray.drop({"red.png": DOGS["red.png"]})
    tray.wait_for(["red.png"])
    assert tray.widgets()["folder"] == "my-dog"


def test_own_pictures_take_the_place_of_some_chosen_of_the_example(ui):
    tray = opened(ui, folder="example-toy", picture_files="toy-1.jpg\ntoy-4.jpg")
    tray.wait_for(["toy-1.jpg", "toy-4.jpg"])
    tray.drop({"red.png": DOGS["red.png"]})
    tray.wait_for(["red.png"])
    assert (tray.widgets()["folder"], tray.widgets()["picture_files"]) == ("my-dog", "")
    run = ui.run()
    assert run.status == "success", run
    assert colours(ui, run) == [(255, 0, 0)]


def test_wrong_files_and_failed_uploads_are_told(ui, server):
    tray = opened(ui)
    tray.drop({"red.png": DOGS["red.png"], "clip.mp4": b"film"})
    tray.wait_for_error("clip.mp4 is not a picture; drop PNG, JPEG or WebP files, and .txt or .caption files.")
    assert tray.names() == ["red.png"]
    tray = opened(ui)
    tray.drop({"clip.mp4": b"film"})
    tray.wait_for_error("clip.mp4 is not a picture")
    assert tray.names() == [] and not (server.base / "input/my-dog-2").exists()
    shutil.rmtree(server.base / "input/my-dog")
    ui.js(REFUSE_UPLOADS, True)
    tray.drop({"red.png": DOGS["red.png"]})
    assert tray.wait_for_error("red.png could not be uploaded: the server answered 413").endswith(".")
    ui.js(REFUSE_UPLOADS, False)
    assert tray.widgets()["folder"] == ""
    tray.drop({"red.png": DOGS["red.png"]})
    tray.wait_for(["red.png"])
    assert tray.error() == ""


def test_what_a_folder_holds_besides_pictures_is_named(ui, server):
    (server.base / "input/mixed").mkdir()
    for name in ("red.jpe", "clip.mp4"):
        (server.base / "input/mixed" / name).write_bytes(DOGS["red.png"])
    tray = opened(ui, folder="mixed")
    tray.wait_for(["red.jpe"])
    tray.root.get_by_text("Not used from the folder: clip.mp4 (no picture).").wait_for(timeout=10_000)


def test_captions_are_uploaded_beside_their_pictures_under_their_own_suffix(ui, server):
    tray, folder = opened(ui), server.base / "input/my-dog"
    tray.drop({"red.png": DOGS["red.png"], "green.png": DOGS["green.png"], "RED.caption": b"{} is red",
               "green.png.txt": b"{} is green"})
    tray.wait_for(["green.png", "red.png"])
    assert (folder / "red.caption").read_bytes() == b"{} is red" and (
        folder / "green.txt"
    ).read_bytes() == b"{} is green"


def test_the_sentence_of_a_failed_run_is_on_the_node(ui, server):
    tray = opened(ui)
    tray.drop(DOGS)
    tray.wait_for(sorted(DOGS))
    (server.base / "input/my-dog/green.png").write_bytes(DOGS["green.png"][:60])
    assert ui.run().status == "error"
    tray.wait_for_error("green.png cannot be read as a picture")
    (server.base / "input/my-dog/green.png").write_bytes(DOGS["green.png"])
    assert ui.run().status == "success"
    assert tray.error() == ""


def test_a_missing_folder_is_told_when_the_workflow_opens(ui):
    tray = opened(ui, folder="gone")
    tray.wait_for_error("Folder 'gone' is not in ComfyUI's input folder")
    tray.drop({"red.png": DOGS["red.png"]})
    tray.wait_for(["red.png"])
    assert tray.widgets()["folder"] == "gone"


def test_another_graph_and_undo_show_the_pictures_of_their_own_node(ui, server):
    """Node ids repeat from graph to graph; what is shown must belong to the node that is there now."""
    for name, data in DOGS.items():
        (server.base / "input" / name[:-4]).mkdir()
        (server.base / "input" / name[:-4] / name).write_bytes(data)
    for name in (*DOGS, *DOGS):
        tray = opened(ui, folder=name[:-4])
        tray.wait_for([name])
    ui.js(CHANGE_TITLE)
    ui.command("Comfy.Undo")
    ui.page.wait_for_function("() => window.app.graph.getNodeById('2').title === 'Subject'")
    tray.wait_for(["blue.png"])
    tray.root.get_by_role("button", name="Do not use blue.png").click()
    tray.wait_for([])
    assert tray.widgets()["folder"] == ""


@pytest.mark.parametrize("word, folder", [("<con>", "con_"), (f"<{'w' * 300}>", "w" * 50), ("<COM1>", "COM1_"),
                                          (f"<{unicodedata.normalize('NFD', 'café')}>", "café")])
def test_a_folder_is_named_after_the_word(ui, server, word, folder):
    tray = opened(ui)
    ui.set_widget("1", "placeholder", word)
    tray.drop({"new.png": DOGS["blue.png"]})
    tray.wait_for(["new.png"])
    assert tray.widgets()["folder"] == folder
    assert [path.name for path in (server.base / "input" / folder).iterdir()] == ["new.png"]


def test_help_page(ui):
    opened(ui)
    ui.node_help("2")
    ui.page.get_by_text("as released").first.wait_for(timeout=10_000)


def test_route_lists_and_refuses(server):
    assert server.get("/personalize/pictures?folder=example-toy")["place"] == "example"
    answer = server.get("/personalize/pictures?folder=..%2Foutput")
    assert answer["pictures"] == [] and answer["place"] == "nowhere" and "outside" in answer["message"]
    assert server.get("/personalize/pictures") == {"pictures": [], "count": 0, "place": "input", "message": "",
                                                   "left_out": ""}


def test_thumbnails_lie_inside_the_node_beside_each_other(ui):
    tray = opened(ui, folder="example-toy")
    tray.wait_for([f"toy-{n}.jpg" for n in range(1, 6)])
    ui.settle()
    node = ui.js(NODE_BOX, "2")
    boxes = [item.bounding_box() for item in tray.root.locator(".pz-tray-thumb").all()]
    for box in boxes:
        assert abs(box["width"] - box["height"]) < 1 and box["width"] > 30
        assert node["x"] < box["x"] and box["x"] + box["width"] < node["x"] + node["width"]
        assert node["y"] < box["y"] and box["y"] + box["height"] < node["y"] + node["height"]
    for left, right in itertools.pairwise(boxes):
        assert right["x"] >= left["x"] + left["width"] or right["y"] >= left["y"] + left["height"]


def test_only_the_tray_stands_for_the_chosen_names(ui):
    """The text widget `picture_files` is kept in the workflow but not drawn."""
    tray = opened(ui)
    assert "picture_files" in tray.widgets()
    assert ui.page.locator("textarea[placeholder=pictures]:visible").count() == 0
    assert ui.page.locator("textarea:visible:not(.pz-tray-caption)").count() == 0, "the captions are folded away"
