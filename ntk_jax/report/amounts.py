"""Numbers for people: how every figure in the report is rounded, scaled and given its unit.

Anything that is not a finite number prints as an en dash, so that a NaN in a file never reaches the page as `nan`.
"""

from __future__ import annotations

import math
from typing import Any

NOTHING = "–"
LARGEST = 1e100  # a larger number comes from a damaged file, and the scale of a figure would overflow
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def finite(value: Any) -> float | None:
    """The value as a float when it is a finite number, else None (also for booleans, text, null and absurd sizes)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if abs(value) < LARGEST else None


def minus(text: str) -> str:
    """The same text with real minus signs."""
    return text.replace("-", "−")


def count(value: Any) -> str:
    """A whole number with thousands separated: 20,143."""
    number = finite(value)
    return NOTHING if number is None else minus(f"{round(number):,}")


def general(value: Any, digits: int = 3) -> str:
    """Three significant digits; powers of ten where a plain number would be long: 0.0124, 812, 3.1 × 10⁻⁷."""
    number = finite(value)
    if number is None:
        return NOTHING
    if number == 0:
        return "0"
    mantissa, _, rest = f"{number:.{digits - 1}e}".partition("e")
    exponent = int(rest)
    if -4 < exponent < digits:
        return minus(f"{number:.{digits - 1 - exponent}f}")
    if digits <= exponent < 6:
        return minus(f"{number:,.0f}")
    return f"{minus(mantissa)} × 10{str(exponent).translate(_SUPERSCRIPT)}"


def power(exponent: int) -> str:
    """`10⁻⁷`."""
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def percent(value: Any, digits: int = 1) -> str:
    """A share in percent: 0.4567 is 45.7%; a share that is small but not nothing never prints as 0.0%."""
    number = finite(value)
    if number is None:
        return NOTHING
    smallest = 10.0**-digits
    if 0 < number * 100 < smallest / 2:
        return f"<{smallest:.{digits}f}%"
    return minus(f"{number * 100:.{digits}f}%")


def points(value: Any) -> str:
    """A difference of two shares in percentage points, always signed: +4.1."""
    number = finite(value)
    if number is None:
        return NOTHING
    text = f"{number * 100:+.1f}"
    return "0.0" if float(text) == 0 else minus(text)


def nats(value: Any) -> str:
    """A difference of losses, always signed: −0.0312."""
    number = finite(value)
    if number is None:
        return NOTHING
    text = f"{number:+.4f}"
    return "0.0000" if float(text) == 0 else minus(text)


def signed(value: Any) -> str:
    """A correlation: −0.81."""
    number = finite(value)
    return NOTHING if number is None else minus(f"{number:+.2f}")


def times(value: Any) -> str:
    """A ratio: ×3.1."""
    number = finite(value)
    if number is None:
        return NOTHING
    if number == 0:
        return "×0"
    return f"×{number:.0f}" if number >= 100 else f"×{number:.1f}" if number >= 10 else f"×{number:.2f}"


def metric(value: Any, unit: str = "") -> str:
    """A large amount with an SI prefix: 3.42 PFLOP, 1.8M (no unit: the letters people write behind counts)."""
    number = finite(value)
    if number is None:
        return NOTHING
    if abs(number) < 1000:
        return minus(f"{number:.0f}" if number == round(number) else f"{number:.3g}") + (f" {unit}" if unit else "")
    prefixes = "kMGTPEZY" if unit else "kMBT"
    step = min(int(math.log10(abs(number)) // 3), len(prefixes))
    if round(abs(number) / 1000.0**step, 1) >= 1000 and step < len(prefixes):
        step += 1
    scaled = number / 1000.0**step
    text = f"{scaled:.2f}" if abs(scaled) < 9.995 else f"{scaled:.1f}" if abs(scaled) < 99.95 else f"{scaled:.0f}"
    return minus(text) + (f" {prefixes[step - 1]}{unit}" if unit else prefixes[step - 1])


def duration(seconds: Any) -> str:
    """12.3 s, 4 min 05 s, 3 h 20 min."""
    number = finite(seconds)
    if number is None or number < 0:
        return NOTHING
    if number < 59.95:
        return f"{number:.1f} s"
    whole = round(number)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(number / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"
