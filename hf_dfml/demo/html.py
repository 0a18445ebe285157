"""What the page shows, as HTML: answers with bars, pictures in rows, messages. Every text of a user's is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from hf_dfml.demo.lesson import Lesson, Shown

CSS = """
.gradio-container { max-width: 960px !important; margin: 0 auto !important; }
.gradio-container { --body-text-color-subdued: #52525b; --block-info-text-color: #52525b; }
.dark .gradio-container, .gradio-container.dark {
  --body-text-color-subdued: #d4d4d8; --block-info-text-color: #d4d4d8; }
.gradio-container [data-testid="upload-text"] span { color: inherit; }
.gradio-container .html-container { padding: 0; }
.dfml { color: var(--body-text-color); font-size: 1rem; line-height: 1.5; overflow-wrap: anywhere; }
.dfml ul, .dfml ol { list-style: none; margin: 0; padding: 0; }
.dfml p { margin: 0 0 .5rem; }
.dfml img { display: block; margin: 0 !important; }
.dfml-message { border-left: 4px solid var(--color-accent); padding: .5rem .75rem; }
.dfml-error { border-left: 4px solid #b91c1c; background: #fef2f2; color: #7f1d1d; padding: .5rem .75rem; }
.dark .dfml-error { background: #450a0a; color: #fecaca; }
.dfml-answer { display: flex; flex-wrap: wrap; gap: 1rem; padding: 1rem 0;
  border-top: 1px solid var(--border-color-primary); }
.dfml-answer:first-child { border-top: 0; }
.dfml figure { margin: 0; width: 128px; }
.dfml figcaption { font-size: .875rem; line-height: 1.3; display: -webkit-box; -webkit-box-orient: vertical;
  -webkit-line-clamp: 3; overflow: hidden; }
.dfml-big { width: 128px; height: 128px; object-fit: contain; background: var(--background-fill-secondary); }
.dfml-small { width: 64px; height: 64px; object-fit: contain; background: var(--background-fill-secondary); }
.dfml-words { flex: 1 1 190px; min-width: 0; }
.dfml-near { max-width: 236px; }
.dfml-best { font-size: 1.25rem; font-weight: 600; }
.dfml-bar { display: grid; grid-template-columns: minmax(3.5rem, 2fr) 3fr 3.5rem; gap: .5rem; align-items: center; }
.dfml-track { background: var(--border-color-primary); height: .75rem; border-radius: .375rem; overflow: hidden; }
.dfml-track i { display: block; height: 100%; background: #c2410c; }
.dfml-number { text-align: right; font-variant-numeric: tabular-nums; }
.dfml-row { display: flex; flex-wrap: wrap; gap: .5rem; }
.dfml-row li { width: 72px; font-size: .8125rem; line-height: 1.3; }
.dfml h3 { font-size: 1rem; font-weight: 600; margin: .75rem 0 .25rem; }
@media (max-width: 480px) { .dfml figure { width: 96px; } .dfml-big { width: 96px; height: 96px; } }
"""

LABEL_UPLOADS = """() => {
  const label = () => document.querySelectorAll('#queries, [id^="pictures-"]').forEach((block) => {
    const name = block.querySelector('label')?.textContent.trim();
    block.querySelectorAll('button, input[type=file]').forEach((part) => {
      const words = part.getAttribute('aria-label') || '';
      if (name && !words.startsWith(name))
        part.setAttribute('aria-label', name + ': ' + (words === 'common.upload' ? 'add more' : words.toLowerCase()));
    });
  });
  new MutationObserver(label).observe(document.body, { childList: true, subtree: true });
  label();
}"""
"""Gradio calls the buttons and inputs of all uploads the same: for screen readers each gets the name of its field."""


def answers(shown: Sequence[Shown], left_out: Sequence[str]) -> str:
    """Each picture with its probabilities and the nearest support pictures."""
    rows = "".join(map(_answer, shown))
    return f'<div class="dfml">{_left_out(left_out)}<ol>{rows}</ol></div>'


def learnt(lesson: Lesson, estimate: str) -> str:
    """What was learnt from which pictures, class by class."""
    rows = "".join(
        f"<h3>{escape(str(label))}</h3><ul class='dfml-row'>"
        + "".join(
            f'<li><img class="dfml-small" src="{picture}" alt="A picture of {escape(str(label))}"></li>'
            for name, picture in zip(lesson.labels, lesson.thumbnails, strict=True)
            if name == label
        )
        + "</ul>"
        for label in dict.fromkeys(lesson.labels)
    )
    return (
        f'<div class="dfml" role="status"><p class="dfml-message">{escape(estimate)}</p>'
        f"{_left_out(lesson.left_out)}{rows}</div>"
    )


def known(lesson: Lesson) -> str:
    """The classes of a stored classifier."""
    names = ", ".join(escape(str(name)) for name in lesson.classifier.classes)
    found = lesson.classifier.left_out
    estimate = (
        f"<p>On its own {found.total} pictures, each left out in turn: {escape(str(found))}.</p>" if found else ""
    )
    count = len(lesson.classifier.classes)
    return f'<div class="dfml"><p>It knows {count} classes: <strong>{names}</strong>.</p>{estimate}</div>'


def message(text: str) -> str:
    """What goes well, or what is still to be done."""
    return f'<div class="dfml" role="status"><p class="dfml-message">{escape(text)}</p></div>'


def error(text: str) -> str:
    """What went wrong."""
    return f'<div class="dfml" role="alert"><p class="dfml-error">{escape(text)}</p></div>'


def _answer(shown: Shown) -> str:
    (label, probability), *_ = shown.top
    name = escape(shown.picture.file.name)
    bars = "".join(_bar(*row) for row in shown.top)
    return (
        f'<li class="dfml-answer"><figure><img class="dfml-big" src="{shown.picture.thumbnail}" alt="{name}">'
        f'<figcaption title="{name}">{name}</figcaption></figure><div class="dfml-words">'
        f'<p class="dfml-best">{escape(str(label))}, {probability:.1%}</p><ul>{bars}</ul></div>{_nearest(shown)}</li>'
    )


def _bar(label: Any, probability: float) -> str:
    return (
        f'<li class="dfml-bar"><span>{escape(str(label))}</span><span class="dfml-track" aria-hidden="true">'
        f'<i style="width:{probability:.1%}"></i></span><span class="dfml-number">{probability:.1%}</span></li>'
    )


def _nearest(shown: Shown) -> str:
    rows = "".join(
        f'<li><img class="dfml-small" src="{row.thumbnail}" alt="A picture of {escape(str(row.label))}">'
        f"{escape(str(row.label))}<br>{row.similarity:.2f}</li>"
        for row in shown.nearest
    )
    return f'<div class="dfml-near"><p>Most similar examples</p><ul class="dfml-row">{rows}</ul></div>' if rows else ""


def _left_out(reasons: Sequence[str]) -> str:
    rows = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    return f'<div class="dfml-error" role="alert"><p>Left out:</p><ul>{rows}</ul></div>' if rows else ""
