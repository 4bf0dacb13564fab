"""Group confidence: the mean token confidence of a sliding window (DeepConf, arXiv 2508.15260).

A trace's lowest group confidence says how unsure its least sure stretch was (section 3.1).
"""

import math
from array import array

WINDOW = 2048
"""Tokens of a group in the paper."""


class GroupConfidence:
    """The sliding window of one running trace: constant work for each token."""

    __slots__ = ("_lowest", "_oldest", "_sum", "_values", "window")

    def __init__(self, window: int) -> None:
        """`window`: tokens of a group, at least 1."""
        self.window = window
        self._values = array("d")  # a ring once it is full
        self._oldest = 0
        self._sum = 0.0
        self._lowest = math.inf

    def add(self, confidence: float) -> float | None:
        """Take in the next token's confidence; one that is not finite is passed over.

        Returns:
            The confidence of the group that ends with it; None before the first full group.
        """
        values = self._values
        if not math.isfinite(confidence):
            return None
        self._sum += confidence
        if len(values) < self.window:
            values.append(confidence)
            if len(values) < self.window:
                return None
        else:
            oldest = self._oldest
            self._sum -= values[oldest]
            values[oldest] = confidence
            self._oldest = oldest + 1 if oldest + 1 < self.window else 0
        group = self._sum / self.window
        if group < self._lowest:
            self._lowest = group
        return group

    @property
    def lowest(self) -> float | None:
        """The lowest group confidence so far; None without tokens.

        A trace shorter than the window is one group.
        """
        if len(self._values) < self.window:
            return self._sum / len(self._values) if self._values else None
        return self._lowest
