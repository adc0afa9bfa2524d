"""LongBench (arXiv 2308.14508): 21 tasks and LongBench-E, five protocols, scores equal to its own program's."""

from evals.longbench.benchmark import LongBench
from evals.longbench.score import Scored, score_predictions

__all__ = ["LongBench", "Scored", "score_predictions"]
