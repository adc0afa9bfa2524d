"""RULER (arXiv 2404.06654): generators, prompts and scoring of its 13 tasks, both versions of its code (2024, 2025)."""

from evals.ruler.benchmark import Ruler

__all__ = ["Ruler"]
