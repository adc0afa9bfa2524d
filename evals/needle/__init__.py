"""Needles in a haystack, over lengths and depths: what `report.py` draws as a heat map."""

from evals.needle.benchmark import Needle

__all__ = ["Needle"]
