"""Numbers with their nouns, for messages."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, such as ``1 record`` or ``1,200 records``.

    Args:
        number: how many.
        noun: what is counted, in the singular.
        plural: its plural. Default: the noun with an ``s``.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
