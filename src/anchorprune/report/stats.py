"""How sure an accuracy is that was measured on few images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution


def wilson(share: float, n: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a share seen in n trials; 95 % by default.

    E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22, 1927. Unlike the
    textbook share ± z·√(p(1−p)/n), it stays within [0, 1] and has a width at 0 % and 100 %.

    Args:
        share: 0 … 1; need not be a whole number of n-ths (the mean of several draws).
        n: 1 or more.
    """
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"no interval for a share of {share} in {n} trials")
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


@dataclass(frozen=True)
class Difference:
    """A difference of two accuracies on the same images, with its 95 % interval; as shares, not percent."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or −1 where the interval leaves out zero, else 0: not told apart."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Accuracy of `a` minus that of `b`, image by image, which leaves out how hard the images are.

    Args:
        a, b: for each image, whether it was recognised (1 or 0; the mean over draws where there are several).
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    n = len(differences)
    mean = math.fsum(differences) / n
    variance = math.fsum((d - mean) ** 2 for d in differences) / max(1, n - 1)
    spread = Z95 * math.sqrt(variance / n)
    return Difference(mean, mean - spread, mean + spread)
