"""ZeroSCROLLS (arXiv 2305.14196): ten tasks over long texts, asked as kvpress 0.5.5 does, scored as its paper says."""

from evals.zeroscrolls.benchmark import ZeroSCROLLS

__all__ = ["ZeroSCROLLS"]
