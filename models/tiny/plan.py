"""Which lesson a step belongs to, and its learning rate: cycles of warm-up, constant rate and linear decay."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

FLOOR = 0.02
"""Share of the learning rate that is left at the end of a cycle."""


class Plan:
    """cycles: mappings with `warmup` and `decay` in steps, `tokens` per step, and `phases`, each of which has
    `steps`."""

    def __init__(self, cycles: Any) -> None:
        self.cycles = list(cycles)
        steps = [sum(phase.steps for phase in cycle.phases) for cycle in self.cycles]
        self.ends = list(accumulate(steps))
        self.starts = [end - count for end, count in zip(self.ends, steps, strict=True)]

    @property
    def steps(self) -> int:
        return self.ends[-1]

    def cycle(self, step: int) -> int:
        """The cycle that `step` (from 0) belongs to."""
        return next(index for index, end in enumerate(self.ends) if step < end)

    def at(self, step: int) -> tuple[Any, Any]:
        """The cycle and the phase of `step`."""
        index = self.cycle(step)
        cycle, left = self.cycles[index], step - self.starts[index]
        for phase in cycle.phases:
            if left < phase.steps:
                return cycle, phase
            left -= phase.steps
        raise AssertionError("a cycle is as long as its phases together")

    def rate(self, step: int) -> float:
        """Share of the cycle's full learning rate: warm-up, constant, linear decay to 2%."""
        index = self.cycle(step)
        done, left = step - self.starts[index], self.ends[index] - step
        cycle = self.cycles[index]
        return min(1.0, (done + 1) / max(cycle.warmup, 1), max(FLOOR, left / max(cycle.decay, 1)))

    def tokens(self, step: int) -> int:
        """Tokens trained on before `step`, in all cycles."""
        spans = zip(self.cycles, self.starts, self.ends, strict=True)
        return sum(cycle.tokens * max(0, min(step, end) - start) for cycle, start, end in spans)
