"""RULER (arXiv 2404.06654): generators, prompts and scoring of its 13 tasks, both vintages of its code."""

from evals.ruler.benchmark import Ruler

__all__ = ["Ruler"]
