"""LongBench-v2 (arXiv 2412.15204): 503 questions with four choices, as kvpress 0.5.5 asks and scores them."""

from evals.longbench_v2.benchmark import LongBenchV2

__all__ = ["LongBenchV2"]
