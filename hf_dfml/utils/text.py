"""Words for people."""


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    Examples:
        >>> counted(1, "member"), counted(60, "member")
        ('1 member', '60 members')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
