"""Long answers that need what was said before: in the prompt, or earlier in the answer itself."""

from evals.longgen.benchmark import LongGen

__all__ = ["LongGen"]
