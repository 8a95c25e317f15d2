"""What the rounds say: a median, how sure it is, and whether it reaches its bar.

The interval is the order-statistic one: no assumption about the noise, no random numbers. With 9 rounds it runs from the
2nd to the 8th value and covers the true median with 96 %.
"""

from dataclasses import dataclass
from math import comb
from statistics import median

CONFIDENCE = 0.95
ENOUGH = 6  # fewer values cannot give a 95 % interval: 1 - 2 / 2**5 is 94 %


def interval(values):
    """(low, high) around the median, the narrowest that still covers it with CONFIDENCE; the whole range if none does."""
    ordered = sorted(values)
    n = len(ordered)
    cut = 0  # values left out at each end
    while 2 * (cut + 1) < n and 1 - 2 * sum(comb(n, k) for k in range(cut + 2)) / 2**n >= CONFIDENCE:
        cut += 1
    return ordered[cut], ordered[n - 1 - cut]


@dataclass(frozen=True)
class Bar:
    bound: float
    at_least: bool = False  # a lower bound; else an upper one
    always: bool = False  # for every round, not for their median: a promise, not a speed

    def __str__(self):
        return f"{'≥' if self.at_least else '≤'} {self.bound:.2f}"


def verdict(values, bar):
    """"met" when the interval reaches the bar."""
    sign = -1 if bar.at_least else 1
    values, bound = [sign * value for value in values], sign * bar.bound
    if bar.always and max(values) > bound:
        return "NOT met"
    if len(values) < ENOUGH:
        return "unclear: too few rounds"
    low, _ = interval(values)
    if median(values) <= bound:
        return "met"
    return "met, within the noise" if low <= bound else "NOT met"


def ratios(above, below):
    """Round by round, where both have a value."""
    return [a / b for a, b in zip(above, below) if a is not None and b]


def best(candidates):
    """The name with the lowest median among {name: values}; None if nobody has a value.

    Chosen over all rounds, not round by round: the least of several noisy values is less than the best peer really costs.
    """
    medians = {name: median(present(values)) for name, values in candidates.items() if present(values)}
    return min(medians, key=medians.get) if medians else None


def present(values):
    return [value for value in values if value is not None]
