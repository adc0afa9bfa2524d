"""LooGLE (arXiv 2311.04939): questions about documents of 2022 and later, as kvpress 0.5.5 asks and scores them."""

from evals.loogle.benchmark import LooGLE

__all__ = ["LooGLE"]
