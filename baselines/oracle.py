"""NOT A DEPLOYABLE METHOD: rank by the long-horizon utility itself. No scorer can keep more utility.

    U[k, j] = max over t and over h in group k of A_t[h, j] n[h, j]      lukv/budgets/oracle.py

Utility is known only after the answer. So the evaluation lets the full cache answer each question first. An extra pass
then reads question and answer behind the prompt, and the rows that decide the answer's tokens say what each token was
worth. Each question has a compressed cache of its own.

At the same budgets, the distance between a scorer and this one is due to the scorer. It is an upper bound of the
utility that is kept, not of the benchmark's score: utility belongs to single tokens, while an answer may need several
together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lukv.ops import utility
from lukv.scoring import ExtraPass, PassLayer, Prompt, PromptLayer, Scorer


@dataclass(frozen=True)
class Answered(ExtraPass):
    """The question and its answer. The last `rows` rows decide the answer's tokens."""

    rows: int


@dataclass(frozen=True)
class Oracle(Scorer):
    """`observed` is the utility [K, T]. Raises ValueError where no answer is known."""

    needs_answer: ClassVar[bool] = True
    needs_output: ClassVar[bool] = True
    name: str = "oracle"

    def extra_passes(self, prompt: Prompt) -> list[ExtraPass]:
        if not prompt.answer:
            raise ValueError(f"scorer {self.name} has to know the answer: job=evaluate lets the full cache give it")
        # the last token of the answer decides nothing more
        return [Answered(prompt.question + prompt.answer[:-1], rows=len(prompt.answer))]

    def observe_pass(self, observed: Tensor | None, layer: PassLayer) -> Tensor:
        assert isinstance(layer.asked, Answered)
        assert layer.weigh is not None
        weight = layer.weigh(layer.values[:, : layer.tokens])
        queries = layer.queries[:, -layer.asked.rows :]
        return utility(queries, layer.keys, weight / weight.sum(), layer.scale, layer.softcap)

    def score(self, layer: PromptLayer) -> Tensor:
        worth: Tensor = layer.observed
        return worth.float()
