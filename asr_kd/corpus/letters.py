"""Letters of words, in whatever way their accents and tone marks are written."""

import unicodedata


def letters_of(text: str) -> tuple[str, ...]:
    """The letters of a text in NFC, without its white space; a mark that no letter includes stays with its base."""
    letters: list[str] = []
    for character in unicodedata.normalize("NFC", "".join(text.split())):
        if unicodedata.combining(character) and letters:
            letters[-1] += character
        else:
            letters.append(character)
    return tuple(letters)
