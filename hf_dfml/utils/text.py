"""Words for people, and for addresses."""

import re


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    Examples:
        >>> counted(1, "member"), counted(60, "member")
        ('1 member', '60 members')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def slug(text: str) -> str:
    """Lower-case letters, digits, dots and hyphens of a text, for names of files, repositories and tags.

    Examples:
        >>> slug("BiDf-MKD (joint)")
        'bidf-mkd-joint'
    """
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-")
