"""The folder of a Hugging Face Space that shows the page."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from hf_dfml.classifier.files import write
from hf_dfml.demo.page import gradio
from hf_dfml.demo.subject import Subject, open_subject
from hf_dfml.meta_model import MetaModel
from hf_dfml.utils.checkpoint import atomic_write
from hf_dfml.version import __version__

MODEL_FOLDER = "model"
APP = '''"""The page of {name}: https://huggingface.co/docs/hub/spaces-sdks-gradio runs this file."""

from hf_dfml.demo.page import launch

launch({source!r})
'''
CARD = """{front}

# {title}

{text} Made with `hf-dfml demo --space`; run it on your own machine with

```bash
pip install -r requirements.txt gradio=={gradio}
python app.py
```
"""


def write_space(name: str, folder: Path, device: str = "cpu") -> Path:
    """Write README.md (with the Space's settings), app.py, requirements.txt, and the model where it is not on the Hub.

    Args:
        name: a stored classifier or a meta-model, a folder or a Hub id; of the Hub also a pool.
        folder: is made; nothing may be in it.
        device: where the model is read to.

    Returns:
        The folder.

    Raises:
        FileExistsError: if the folder holds anything.
        ModuleNotFoundError: without Gradio, whose version the Space names.
        ValueError: for a pool in a folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not an empty folder: choose another one for the Space.")
    gradio()
    subject = open_subject(name, device)
    local = Path(name).expanduser().exists()
    if local and not (subject.classifier or isinstance(subject.model, MetaModel)):
        raise ValueError(
            f"{name} is a pool in a folder, which a Space cannot read: push it and name its Hub id, or adapt it and "
            "name the classifier (`hf-dfml adapt --save`)."
        )
    folder.mkdir(parents=True, exist_ok=True)
    if local:
        _copy(subject, folder / MODEL_FOLDER)
    source = MODEL_FOLDER if local else name
    atomic_write(folder / "app.py", APP.format(name=subject.name, source=source))
    atomic_write(folder / "requirements.txt", f"hf_dfml=={__version__}\n")
    atomic_write(folder / "README.md", _card(subject, None if local else name.partition("@")[0]))
    return folder


def _copy(subject: Subject, folder: Path) -> None:
    """The files of a classifier, its support pictures included where it has them, or of a meta-model."""
    if subject.classifier:
        write(subject.classifier, folder, store_support=subject.classifier.support is not None, for_elsewhere=True)
    elif isinstance(subject.model, MetaModel):
        subject.model.save_pretrained(folder)


def _card(subject: Subject, hub_id: str | None) -> str:
    import yaml

    title = subject.name.split("/")[-1]
    names = subject.classifier and ", ".join(map(str, subject.classifier.classes))
    front: dict[str, Any] = {
        "title": title,
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "app_file": "app.py",
        "pinned": False,
        "short_description": "Classify pictures" if names else "Teach classes with a few pictures",
        "tags": ["hf-dfml", "few-shot", "image-classification"],
        **({"models": [hub_id]} if hub_id and "/" in hub_id else {}),
    }
    text = (
        f"Classifies pictures as one of: {names}."
        if names
        else "Name two classes or more, add a few pictures of each, and it classifies others; download the classifier."
    )
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()
    return CARD.format(front=f"---\n{header}\n---", title=title, text=text, gradio=version("gradio"))
