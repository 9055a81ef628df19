"""Read the one number that a sentence holds."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_NUMBER = re.compile(
    r"""
    (?<![A-Za-z0-9_.]) (?<!\d,)              # not inside a word or a longer number
    (?P<sign>[-+]?) \s? [$€£¥₹]? \s?
    (?P<digits> (?:\d{1,3}(?:,\d{3})+|\d+) (?:\.\d+)? | \.\d+ )
    (?P<exponent> [eE][-+]?\d{1,3} )?
    (?! [.,]?\d )                            # not the beginning of a longer number
    \s? (?P<percent>%)?
    """,
    re.VERBOSE,
)
_MINUS_SIGNS = str.maketrans("−–", "--")
_MAX_DIGITS = 1000


def numbers_in(text: str) -> list[tuple[Fraction, ...]]:
    """Return every number in ``text``, each with the values it may stand for.

    Thousands separators, currency signs and full-width digits are understood. A percentage may
    stand for itself or for its hundredth: `50%` is right where 50 or 0.5 was expected.
    """
    text = unicodedata.normalize("NFKC", text).translate(_MINUS_SIGNS)
    found: list[tuple[Fraction, ...]] = []
    for match in _NUMBER.finditer(text):
        digits = match["digits"].replace(",", "")
        if len(digits) > _MAX_DIGITS:
            continue
        value = Fraction(match["sign"] + digits + (match["exponent"] or ""))
        found.append((value, value / 100) if match["percent"] else (value,))
    return found


def close(value: Fraction, expected: Fraction, tolerance: float) -> bool:
    """Say whether they differ by at most ``tolerance``, relative or absolute, exactly computed."""
    allowed = Fraction(tolerance) * max(abs(expected), Fraction(1))
    return bool(abs(value - expected) <= allowed)
