"""When classes of different members are one class: the rule by which their names are matched."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

NAME_RULE = (
    "upper and lower case, underscores, hyphens and spaces make no difference, and a WordNet id such as n02123045 is "
    "the first word for it ('tabby'), where ImageNet has no other class of that word"
)
_WORDNET = re.compile(r"n\d{8}")


def class_keys(names: tuple[str, ...]) -> tuple[str, ...]:
    """What a member's class names are compared by; the names themselves where two of its own would be one.

    Examples:
        >>> class_keys(("Polar_bear", "n02123045"))
        ('polar bear', 'tabby')
        >>> class_keys(("Cat", "cat"))
        ('Cat', 'cat')
    """
    keys = tuple(_key(name) for name in names)
    return keys if len(set(keys)) == len(keys) else names


def _key(name: str) -> str:
    words = " ".join(re.sub(r"[_\s-]+", " ", name).split()).casefold()
    return _words_of_wordnet().get(words, words) if _WORDNET.fullmatch(words) else words


@cache
def _words_of_wordnet() -> dict[str, str]:
    """ImageNet's WordNet ids and the first word for each; ids whose word has another id as well are left out."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    words = {}
    for id in info.label_names():
        description = info.label_name_to_description(id)
        words[id] = " ".join(re.sub(r"[_\s-]+", " ", description.partition(",")[0]).split()).casefold()
    counts = Counter(words.values())
    return {id: word for id, word in words.items() if counts[word] == 1}
