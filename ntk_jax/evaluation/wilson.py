"""The interval of a share."""

from __future__ import annotations

import math


def wilson(right: float, count: float, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of a share, `right` of `count`, by the score interval (Wilson 1927); (0, 1) where count is 0."""
    if count <= 0:
        return 0.0, 1.0
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + confidence / 2))
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)
