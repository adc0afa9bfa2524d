"""Public sets of mathematical problems, whose answers are reasoned out at length: GSM8K, MATH-500, AIME25."""

from evals.mathematics.benchmark import Mathematics

__all__ = ["Mathematics"]
