"""The Gradio page. It calls nothing outside of its machine: no telemetry, no share link, no fonts of others.

python -c "from hf_dfml.demo.page import launch; launch('runs/tgr')"
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from hf_dfml.classifier import Classifier
from hf_dfml.classifier.answers import estimate
from hf_dfml.demo import html
from hf_dfml.demo.lesson import Lesson, classify, learn, pack, stored_lesson
from hf_dfml.demo.subject import Subject, open_subject
from hf_dfml.errors import explain

MAX_CLASSES = 12
FIRST_CLASSES = 2
KEPT_SECONDS = 3600
"""How long uploads and what was learnt are kept after a visitor has left."""
MAX_FILE = "32mb"
READY = "The answers appear here."
NOTHING_YET = "Learn the classes first, then classify."
COLOURS = {
    f"button_primary_background_fill{part}": colour
    for part, colour in (("", "#c2410c"), ("_dark", "#c2410c"), ("_hover", "#9a3412"), ("_hover_dark", "#9a3412"))
}
"""White text on Gradio's own orange has too little contrast (2.8 to 1; this has 5.2)."""
NEEDED = "The demo needs Gradio, which is not installed: pip install 'hf_dfml[demo]'."


def gradio() -> Any:
    """The library, told to send nothing.

    Raises:
        ModuleNotFoundError: if it is not installed, with the command that installs it.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(NEEDED) from error
    return gradio


def launch(
    name: str, *, host: str | None = None, port: int | None = None, device: str = "cpu", block: bool = True
) -> Any:
    """Open the page of a model or classifier; the page, with its address as `local_url`.

    Args:
        name: a meta-model, a pool or a stored classifier: a folder or a Hub id.
        host: address to listen on; None: `GRADIO_SERVER_NAME`, which a Space sets, else this machine alone.
        port: 0: any free one; None: `GRADIO_SERVER_PORT`, else the first free one from 7860.
        device: where the work is done.
        block: whether to wait until the process is ended.

    Raises:
        ModuleNotFoundError: without Gradio.
        ConnectionError: if the port is taken or impossible, or the host is not this machine's.
    """
    if "GRADIO_TEMP_DIR" not in os.environ:  # A folder of this process alone, for uploads, which goes with it.
        os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="hf_dfml_demo_")
        atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
    gr = gradio()
    if port is not None:
        port = _free_port(host or "127.0.0.1", port)
    page = build_page(open_subject(name, device))
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=not block,
        max_file_size=MAX_FILE,
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        css=html.CSS,
        js=html.LABEL_UPLOADS,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(**COLOURS),
    )
    return page


def build_page(subject: Subject) -> Any:
    """The page, as `gradio.Blocks`."""
    gr = gradio()
    title = "Classify pictures" if subject.classifier else "Teach classes with a few pictures"
    kept: dict[str, Any] = {"delete_cache": (600, KEPT_SECONDS)}
    with gr.Blocks(title=f"{title}: {subject.name}", analytics_enabled=False, **kept) as page:
        actions = _Actions(gr, subject, Path(page.GRADIO_CACHE))
        start = actions.start
        lesson = gr.State(None, time_to_live=KEPT_SECONDS)
        gr.Markdown(f"# {title}\n\nModel: **{_plain(subject.name)}**")
        if start:
            gr.HTML(html.known(start))
        else:
            inputs, teach, learnt = _learning_part(gr)
        gr.Markdown("## Your pictures" if start else "## Classify pictures")
        files = _upload(gr, "Pictures to classify", "queries")
        ask = gr.Button("Classify", variant="primary", elem_id="classify")
        answers = gr.HTML(html.message(READY if start else NOTHING_YET), elem_id="answers")
        gr.Markdown(
            "## Keep the classifier\n\nUnpack the file: `hf-dfml classify my-classifier photos/` and "
            "`hf-dfml serve my-classifier` use the folder in it."
        )
        file, refusal = actions.pack(start.classifier, bool(start.thumbnails)) if start else (None, "")
        if refusal:
            gr.HTML(html.message(refusal))
        download = gr.DownloadButton(
            "Download the classifier (.zip)", value=file, interactive=file is not None, elem_id="download"
        )
        together: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
        ask.click(actions.classify, [lesson, files], answers, api_name="classify", **together)
        if not start:
            teach.click(actions.learn, inputs, [lesson, learnt, download, answers], api_name="learn", **together)
    return page


class _Actions:
    """What the buttons do."""

    def __init__(self, gr: Any, subject: Subject, cache: Path) -> None:
        self.gr, self.subject, self.cache = gr, subject, cache
        self.start = stored_lesson(subject.classifier) if subject.classifier else None

    def classify(self, lesson: Lesson | None, files: list[str] | None) -> str:
        """The answers to pictures, or what is wrong."""
        current = lesson or self.start
        if current is None:
            return html.error("There are no classes yet: learn them first, from a picture or more of each.")
        try:
            return html.answers(*classify(current, files or []))
        except Exception as error:
            return html.error(_sentence(error))

    def learn(self, keep: bool, *rows: Any) -> tuple[Any, ...]:
        """What was learnt, as an object and in words, the state of the download, and what stands for the answers."""
        names, files = rows[:MAX_CLASSES], rows[MAX_CLASSES:]
        try:
            lesson = learn(self.subject, [(name or "", some or []) for name, some in zip(names, files, strict=True)])
            said = estimate(lesson.classifier)
        except Exception as error:
            nothing = self.gr.update(value=None, interactive=False)
            return None, html.error(_sentence(error)), nothing, html.message(NOTHING_YET)
        file, refusal = self.pack(lesson.classifier, keep)
        download = self.gr.update(value=file, interactive=file is not None)
        return lesson, html.learnt(lesson, f"{said} {refusal}".rstrip()), download, html.message(READY)

    def pack(self, classifier: Classifier, store_support: bool) -> tuple[str | None, str]:
        """The file of the download, or None and why there is none."""
        try:
            return str(pack(classifier, self.cache, store_support=store_support)), ""
        except ValueError as error:
            return None, f"It cannot be downloaded: {error}"


def _learning_part(gr: Any) -> tuple[list[Any], Any, Any]:
    """The inputs of `_Actions.learn`, its button, and what it shows."""
    gr.Markdown(
        "## Learn the classes\n\nName each class and add a few pictures of it: one is enough, five are better."
    )
    groups, names, pictures = [], [], []
    for number in range(1, MAX_CLASSES + 1):
        with gr.Row(visible=number <= FIRST_CLASSES, equal_height=True) as group:
            names.append(gr.Textbox(label=f"Name of class {number}", scale=1, min_width=200, max_length=80))
            pictures.append(_upload(gr, f"Pictures of class {number}", f"pictures-{number}", scale=2, min_width=280))
        groups.append(group)
    shown = gr.State(FIRST_CLASSES)
    with gr.Row():
        more = gr.Button("Add a class", size="sm", min_width=140)
        fewer = gr.Button("Remove the last class", size="sm", min_width=140)
    keep = gr.Checkbox(
        label="Store my pictures in the download",
        info="Whoever has the file then sees them; the classifier works without.",
        value=False,
    )
    teach = gr.Button("Learn these classes", variant="primary", elem_id="learn")
    learnt = gr.HTML(elem_id="learnt")

    def resize(count: int, step: int) -> list[Any]:
        """Another number of classes; those that are not shown are empty."""
        count = min(MAX_CLASSES, max(FIRST_CLASSES, count + step))
        inside = [number < count for number in range(MAX_CLASSES)]
        cleared = [gr.skip() if shown else gr.update(value=None) for shown in inside]
        return [count, *(gr.update(visible=shown) for shown in inside), *cleared, *cleared]

    changed: dict[str, Any] = {"outputs": [shown, *groups, *names, *pictures], "show_progress": "hidden"}
    for button, step in ((more, 1), (fewer, -1)):
        button.click(partial(resize, step=step), shown, api_name=False, **changed)
    return [keep, *names, *pictures], teach, learnt


def _upload(gr: Any, label: str, id: str, **size: Any) -> Any:
    return gr.File(label=label, file_count="multiple", file_types=["image"], height=150, elem_id=id, **size)


def _sentence(error: Exception) -> str:
    """What a user sees of an error that can be mended; others are faults and raised."""
    sentence = explain(error)
    if sentence is None:
        raise error
    return sentence


def _plain(name: str) -> str:
    """A name without the signs of Markdown and HTML."""
    return "".join(letter if letter.isalnum() or letter in "/-. @" else "\\" + letter for letter in name)


def _free_port(host: str, port: int) -> int:
    """The port itself if it is free; any free one for 0."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a port is a number from 0 to 65535"
        raise ConnectionError(
            f"Cannot listen on port {port} of {host}: {reason}. Choose another --port (0: any free one) or --host."
        ) from error
