"""Text that a model, a file or another machine wrote, made safe for a terminal."""


def printable(text: str) -> str:
    """Control characters, which could drive the terminal, become U+FFFD; line ends and tabs stay."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)
