"""Digit strings and natural numbers as English words."""

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
DIGITS = ONES[:10]
VOCABULARY = (*ONES, *TENS[2:], "hundred", "thousand", "million", "and")
LARGEST = 999_999_999


def digit_words(digits: str) -> list[str]:
    """The words of a digit string: "407" → four zero seven.

    Raises ValueError where `digits` is empty or holds anything but ASCII digits.
    """
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{digits!r} is not a string of digits")
    return [DIGITS[int(digit)] for digit in digits]


def number_words(number: int) -> list[str]:
    """The words of a natural number, with the British "and": 342 → three hundred and forty two.

    Raises ValueError outside of 0 … 999,999,999.
    """
    if not 0 <= number <= LARGEST:
        raise ValueError(f"{number} is not in 0 … {LARGEST}")
    words: list[str] = []
    for size, name in ((1_000_000, "million"), (1_000, "thousand")):
        if number >= size:
            words += [*_below_thousand(number // size), name]
            number %= size
    if words and 0 < number < 100:
        words.append("and")
    return words + _below_thousand(number) if number or not words else words


def _below_thousand(number: int) -> list[str]:
    words: list[str] = []
    if number >= 100:
        words += [ONES[number // 100], "hundred"]
        number %= 100
        if not number:
            return words
        words.append("and")
    if number < 20:
        return [*words, ONES[number]]
    return [*words, TENS[number // 10], *([ONES[number % 10]] if number % 10 else [])]
