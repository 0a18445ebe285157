"""The page: its fields have labels, it does what it shows, asks nobody else; driven in a browser if there is one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hf_dfml import Classifier, adapt
from hf_dfml.classifier import files
from hf_dfml.cli import main
from hf_dfml.demo import page as demo
from hf_dfml.demo.subject import open_subject
from tests.classifier.conftest import CLASSES, labels, pictures
from tests.pool.members import write_pool

gradio = pytest.importorskip("gradio", reason="the extra `demo` is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def opened(folder: Path) -> Iterator[str]:
    """The address of a page on this machine."""
    page = demo.launch(str(folder), host="127.0.0.1", port=0, block=False)
    try:
        yield page.local_url
    finally:
        page.close()


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        for spelling in (name, name.lower()):
            monkeypatch.delenv(spelling, raising=False)


@pytest.fixture
def browser() -> Iterator[Any]:
    """A Chromium of this machine, driven by playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


def test_every_input_has_a_label_of_its_own(meta_folder: Path, classifier_folder: Path) -> None:
    for folder in (meta_folder, classifier_folder):
        blocks = demo.build_page(open_subject(str(folder))).blocks.values()
        inputs = [block for block in blocks if isinstance(block, gradio.File | gradio.Textbox | gradio.Checkbox)]
        labels = [block.label for block in inputs]
        assert all(labels) and len(set(labels)) == len(labels) and "Pictures to classify" in labels


def test_a_classifier_that_works_on_this_machine_alone_is_no_download(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files, "SMALL", 1000)
    classifier = adapt(write_pool(tmp_path / "pool", 2), pictures(0, 2), labels(2))
    folder = classifier.save_pretrained(tmp_path / "mine")
    blocks = demo.build_page(open_subject(str(folder))).blocks.values()
    (download,) = [block for block in blocks if isinstance(block, gradio.DownloadButton)]
    assert download.value is None and not download.interactive
    said = [block.value for block in blocks if isinstance(block, gradio.HTML)]
    assert any(
        "cannot be downloaded: The pool&#x27;s member m-0 is neither on the Hub nor small" in html for html in said
    )
    with pytest.raises(SystemExit, match="m-0 is neither on the Hub nor small"):
        main(["demo", str(folder), "--space", str(tmp_path / "space")])
    assert not list(tmp_path.glob("space/*"))


def test_nothing_is_sent_elsewhere_and_nothing_is_shared(meta_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the launch and a visit ask for is on this machine."""
    asked = []
    whom = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: asked.append(host) or whom(host, *rest, **more)
    )
    page = demo.launch(str(meta_folder), host="127.0.0.1", port=0, block=False)
    try:
        assert page.share_url is None and not page.analytics_enabled and page.run_history is False
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    finally:
        page.close()
    assert set(asked) <= {"127.0.0.1", "localhost", None, b"127.0.0.1"}


def test_learning_classifying_and_downloading_through_the_server(
    meta_folder: Path, photos: dict[str, list[str]], tmp_path: Path
) -> None:
    """With Gradio's own client, one session with errors first."""
    from gradio_client import Client, handle_file

    def sent(files: list[str]) -> list:
        return [handle_file(file) for file in files]

    blank = demo.MAX_CLASSES - len(CLASSES)
    with opened(meta_folder) as url:
        client = Client(url, verbose=False, download_files=str(tmp_path / "got"))
        early = client.predict(sent(photos["new"]), api_name="/classify")
        learnt, _, _ = client.predict(False, *[""] * demo.MAX_CLASSES, *[None] * demo.MAX_CLASSES, api_name="/learn")
        names = [*CLASSES, *[""] * blank]
        files = [*(sent(photos[name]) for name in CLASSES), *[None] * blank]
        taught, download, _ = client.predict(True, *names, *files, api_name="/learn")
        answers = client.predict(sent(photos["new"] + photos["bad"]), api_name="/classify")
        unreadable = client.predict(sent(photos["bad"]), api_name="/classify")
    assert "There are no classes yet" in early and 'role="alert"' in early
    assert "needs at least two classes" in learnt
    assert "On your own 6 images, each left out in turn" in taught and taught.count("<img") == 6
    assert answers.count("<figure>") == 3 and "phone.heic is not readable" in answers and "Most similar" in answers
    assert "None of these files is a picture" in unreadable
    file = download["value"] if isinstance(download, dict) else download
    zipfile.ZipFile(file).extractall(tmp_path / "unpacked")
    classifier = Classifier.from_pretrained(tmp_path / "unpacked" / "my-classifier")
    assert classifier.predict(photos["new"]) == CLASSES and classifier.support is not None


@pytest.mark.parametrize("width", [390, 1280])
def test_a_person_teaches_classes(
    browser: Any, meta_folder: Path, photos: dict[str, list[str]], tmp_path: Path, width: int
) -> None:
    with opened(meta_folder) as url:
        page = browser.new_page(viewport={"width": width, "height": 900})
        hosts, errors = set(), []
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if "://" in request.url else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        page.get_by_role("button", name="Learn these classes").click()
        assert "needs at least two classes" in page.get_by_role("alert").inner_text()
        page.get_by_role("button", name="Add a class").click()
        for number, name in enumerate(CLASSES, 1):
            page.get_by_role("textbox", name=f"Name of class {number}").fill(name)
            page.get_by_label(f"Pictures of class {number}: file upload").set_input_files(photos[name])
            page.get_by_role("link").nth(2 * number - 1).wait_for()  # The second file has arrived.
        page.get_by_role("button", name="Learn these classes").click()
        page.get_by_text("On your own 6 images").wait_for()
        page.get_by_label("Pictures to classify: file upload").set_input_files(photos["new"] + photos["bad"][:1])
        page.get_by_role("link", name="KB").nth(0).wait_for()
        page.locator("#queries").get_by_text("broken").first.wait_for()
        page.get_by_role("button", name="Classify", exact=True).click()
        page.get_by_text("Most similar examples").first.wait_for()
        best = page.locator(".dfml-best").all_inner_texts()
        with page.expect_download() as got:
            page.get_by_role("button", name="Download the classifier").click()
        zipfile.ZipFile(got.value.path()).extractall(tmp_path / "unpacked")
        unlabelled = page.evaluate(
            "[...document.querySelectorAll('input, textarea, button, img')].filter((e) => "
            "!(e.getAttribute('aria-label') || e.alt || e.innerText || (e.labels && e.labels.length)))"
            ".map((e) => e.outerHTML)"
        )
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert "broken.png is not readable" in page.get_by_role("alert").inner_text()
        page.close()
    assert [line.split(",")[0] for line in best] == CLASSES
    assert hosts == {url.split("/")[2]} and errors == [] and unlabelled == []
    assert Classifier.from_pretrained(tmp_path / "unpacked" / "my-classifier").predict(photos["new"]) == CLASSES


def test_a_person_uses_a_stored_classifier(
    browser: Any, classifier_folder: Path, photos: dict[str, list[str]]
) -> None:
    with opened(classifier_folder) as url:
        page = browser.new_page(viewport={"width": 390, "height": 900})
        page.goto(url)
        page.get_by_text("It knows 3 classes: ant, bee, cow.").wait_for()
        assert page.get_by_role("textbox").count() == 0
        page.get_by_label("Pictures to classify: file upload").set_input_files(photos["new"])
        page.locator("#queries").get_by_text("new-cow").first.wait_for()
        page.get_by_role("button", name="Classify", exact=True).click()
        page.get_by_text("Most similar examples").first.wait_for()
        assert [line.split(",")[0] for line in page.locator(".dfml-best").all_inner_texts()] == CLASSES
        page.close()


def test_the_command_shows_the_page_until_it_is_interrupted(classifier_folder: Path) -> None:
    from urllib.request import ProxyHandler, build_opener

    words = [
        sys.executable,
        "-c",
        "from hf_dfml.cli import main; main()",
        "demo",
        str(classifier_folder),
        "--port",
        "0",
    ]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith(f"The page of {classifier_folder} is at http://127.0.0.1:")
        with build_opener(ProxyHandler({})).open(line.split(" is at ")[1].split()[0], timeout=60) as reply:
            assert "Classify pictures: my-classifier" in reply.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0 and process.stdout.read() == "Stopped.\n"
    finally:
        process.kill()
        process.wait()


def test_what_cannot_be_opened_is_a_sentence(classifier_folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(
            SystemExit, match=f"^hf-dfml: Cannot listen on port {port} of 127.0.0.1: Address already in"
        ):
            main(["demo", str(classifier_folder), "--port", port])
    with pytest.raises(SystemExit, match="^hf-dfml: .*a port is a number from 0 to 65535"):
        main(["demo", str(classifier_folder), "--port", "99999"])
    with pytest.raises(SystemExit, match="^hf-dfml: There is no"):
        main(["demo", str(tmp_path / "missing")])


def test_without_gradio_the_command_that_installs_it_is_named(
    classifier_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    for more in ([], ["--space", str(tmp_path / "space")]):
        with pytest.raises(SystemExit, match=r"^hf-dfml: The demo needs Gradio.*pip install 'hf_dfml\[demo\]'\.$"):
            main(["demo", str(classifier_folder), *more])
    assert not (tmp_path / "space").exists()
