"""InfiniteBench (arXiv 2402.13718): eleven of its twelve tasks, as kvpress 0.5.5 asks and scores them."""

from evals.infinitebench.benchmark import InfiniteBench

__all__ = ["InfiniteBench"]
