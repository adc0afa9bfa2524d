"""The oracle of LU-KV (arXiv 2602.08585): it measures what each context token will be worth to the answer.

    U[k, j] = max over t and over h in group k of A_t[h, j] n[h, j]

    n[h, j] = |W_O^h v_j| / sum over heads and tokens

A_t is the attention of the decode step that decides token t of the answer. It is the softmax over all visible keys of
the full cache, cut to the context. The step that decides the first token is the question's last row. n is the value
weight: the length of what a head adds to the layer's output for value v_j. Dividing by the sum over all heads and
context tokens of the layer makes layers comparable.

Only the decode steps' rows are needed. So the prefill is ordinary flash attention, and no matrix of size T x T or
T x hidden exists.

The settings offer three departures from the paper's code, which samples its answers: greedy or reference answers, the
question's other rows counted too, and the paper's formula without the division by the layer's sum. One setting follows
that code: first_row=False leaves the question's last row out, because the code looks at forwards of one token only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lukv.backend.cache import RaggedCache
from lukv.backend.generate import Stop, answer, append, compress
from lukv.backend.output import output_grams
from lukv.backend.passes import run_passes
from lukv.budgets.sampling import Sampling
from lukv.model import LoadedModel
from lukv.ops import utility, value_weight
from lukv.scoring import PromptLayer, Scorer
from lukv.selection import Protection, protect, rank

CONTINUATIONS = ("greedy", "sampled", "reference")


@dataclass(frozen=True)
class OracleSettings:
    """How utility is measured.

    horizon: the largest number of decode steps; there are fewer if the answer ends before.
    continuation: the answer that is decoded. `greedy` takes the likeliest token. `sampled` draws at `temperature`, from
    a generator seeded by `seed` and the question's index. `reference` is the answer that is handed in.
    own_sampling: `sampled` uses the top_k, top_p and repetition penalty of the model's generation config.
    first_row: count the row that decides the answer's first token, the question's last. False looks at forwards of one
    token only, as the authors' code does: 63 rows of 64 tokens.
    question_rows: also count the rows of the question's other tokens.
    normalise: divide the value weights by the layer's sum.
    """

    horizon: int = 64
    continuation: str = "greedy"
    temperature: float = 0.7
    seed: int = 0
    own_sampling: bool = False
    first_row: bool = True
    question_rows: bool = False
    normalise: bool = True

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"horizon={self.horizon} must be at least 1")
        if self.continuation not in CONTINUATIONS:
            raise ValueError(
                f"continuation={self.continuation!r} is not known: choose one of {', '.join(CONTINUATIONS)}"
            )
        if self.horizon == 1 and not self.first_row:
            raise ValueError("horizon=1 with first_row=false looks at no row: raise the horizon")
        if self.own_sampling and self.continuation != "sampled":
            raise ValueError(f"own_sampling=true needs continuation=sampled, not {self.continuation}")
        if self.question_rows and not self.first_row:
            raise ValueError("question_rows=true counts the question's last row too: it goes with first_row=true only")
        if not self.temperature > 0:
            raise ValueError(
                f"temperature={self.temperature} must be above 0 (continuation=greedy takes the best token)"
            )


class UtilityOracle:
    """Measures utilities with one model. A context is prefilled once and can then be asked many questions."""

    def __init__(self, loaded: LoadedModel, settings: OracleSettings | None = None) -> None:
        self.loaded, self.settings = loaded, settings or OracleSettings()
        self.grams = output_grams(loaded.model)

    def prefill(self, ids: Sequence[int], scorers: Sequence[Scorer] = ()) -> MeasuredContext:
        """Prefill a context and keep all of it. `scorers` observe its queries, and their extra passes are run, so that
        they can rank it."""
        cache = compress(
            self.loaded.model, [list(ids)], attention=self.loaded.attention, observe=scorers, record_queries=True
        )
        asking = [scorer for scorer in scorers if scorer.makes_passes and not scorer.needs_answer]
        if asking:
            run_passes(self.loaded, cache, asking, [self.loaded.describe_prompt(ids)])
        return MeasuredContext(self, cache, ids)


class MeasuredContext:
    """One context in the cache: how scorers rank its tokens, and what these are worth to each question."""

    def __init__(self, oracle: UtilityOracle, cache: RaggedCache, ids: Sequence[int]) -> None:
        self.oracle, self.cache, self.ids, self.tokens = oracle, cache, ids, len(ids)
        self.weights = [
            value_weight(cache.view_entries(layer, 0)[1], gram, oracle.settings.normalise)
            for layer, gram in enumerate(oracle.grams)
        ]

    def order(self, scorer: Scorer, protection: Protection, utility: Tensor | None = None) -> Tensor:
        """[layers, K, T] int64 on the CPU: each head's tokens, best first, ranked as an eviction ranks them."""
        return rank(self.scores(scorer, protection, utility))

    def scores(self, scorer: Scorer, protection: Protection, utility: Tensor | None = None) -> Tensor:
        """[layers, K, T] float32 on the CPU: what an eviction ranks by, protected tokens raised above all others.

        The scorer must be among those that `prefill` was given. A scorer with `needs_answer` ranks by `utility`
        [layers, K, T], that of the question at hand, as its own pass would tell it.
        """
        layers = self.layers(scorer)
        if utility is not None:
            layers = [replace(layer, observed=worth) for layer, worth in zip(layers, utility, strict=True)]
        scores = [scorer.score(layer) for layer in layers]
        return torch.stack([protect(s, protection.over(scorer), scorer.name).cpu() for s in scores])

    def layers(self, scorer: Scorer) -> list[PromptLayer]:
        """What the scorer sees of the context, layer by layer."""
        views = []
        for index, layer in enumerate(self.cache.evictable):
            keys, values = (entries[:, : self.tokens] for entries in self.cache.view_entries(index, 0))
            views.append(layer.view(0, keys, values, scorer))
        return views

    @property
    def units(self) -> Tensor:
        """[layers, 1, 1] float32 (float64 for float64) on the CPU: each layer's mean value weight.

        A utility divided by it is the attention probability of a token of average value. That does not depend on the
        model or the context's length.
        """
        return torch.stack([weight.mean().cpu() for weight in self.weights])[:, None, None]

    def utility(
        self,
        question: Sequence[int],
        reference_answer: Sequence[int] | None = None,
        index: int = 0,
        stop: Stop | None = None,
        min_new_tokens: int = 0,
        first_token_may_end: bool = True,
    ) -> Tensor:
        """[layers, K, T] on the CPU: the utility of the context's tokens to one question.

        `reference_answer` is decoded if continuation=reference. `index` gives each question random numbers of its own.
        `stop`, `min_new_tokens` and `first_token_may_end` say when a decoded answer ends, as in
        lukv.backend.generate.answer. The cache is rolled back to the context afterwards. The utility is zero where no
        row counts: an answer of one token without the first row.
        """
        if self.oracle.settings.continuation == "reference":
            rows = self._feed(list(question), reference_answer)
        else:
            rows = self._decode(list(question), index, stop, min_new_tokens, first_token_may_end)
        layers = []
        for layer, weight in enumerate(self.weights):
            keys = self.cache.view_entries(layer, 0)[0]
            if rows == 0:
                layers.append(weight.new_zeros(len(keys), self.tokens).cpu())
                continue
            p = self.cache.evictable[layer].parameters
            queries = self.cache.read_queries(layer)[0, :, -rows:]
            layers.append(utility(queries, keys, weight, p.scale, p.softcap).cpu())
        self.cache.rollback()
        return torch.stack(layers)

    def _feed(self, question: list[int], answer: Sequence[int] | None) -> int:
        """Append the question and the reference answer, and return how many of the newest rows count."""
        if not answer:
            raise ValueError("continuation=reference needs a reference answer of at least one token for each question")
        steps = min(self.oracle.settings.horizon, len(answer))
        # the last token of the answer decides nothing more
        append(self.oracle.loaded.model, self.cache, [[*question, *answer[: steps - 1]]])
        return self._count_rows(question, steps)

    def _decode(
        self, question: list[int], index: int, stop: Stop | None, min_new_tokens: int, first_token_may_end: bool
    ) -> int:
        """Append the question, decode behind it, and return how many of the newest rows count."""
        settings, loaded = self.oracle.settings, self.oracle.loaded
        # with a pick of its own, `answer` stops right after the answer's last token, on a GPU too
        pick = self._sampler(question, index) if settings.continuation == "sampled" else greedy
        said = answer(
            loaded.model,
            self.cache,
            [question],
            settings.horizon,
            loaded.eos_ids,
            stop,
            pick,
            min_new_tokens,
            first_token_may_end,
        )
        return self._count_rows(question, said.steps)

    def _count_rows(self, question: Sequence[int], steps: int) -> int:
        settings = self.oracle.settings
        if settings.question_rows:
            return steps + len(question) - 1
        return steps if settings.first_row else steps - 1

    def _sampler(self, question: Sequence[int], index: int) -> Callable[[Tensor], Tensor]:
        settings = self.oracle.settings
        if not settings.own_sampling:
            return sampler(settings, index)
        own = Sampling.of(self.oracle.loaded.model.generation_config)
        return sampler(settings, index, own, [*self.ids, *question])


def greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def sampler(
    settings: OracleSettings, index: int, own: Sampling | None = None, prompt: Sequence[int] = ()
) -> Callable[[Tensor], Tensor]:
    """A function that draws a token [1] from logits [1, vocabulary]. The same seed and index give the same draws.

    own: the model's own way to draw, which may look at the tokens of `prompt` and of the answer so far.
    """
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + index)
    seen = list(prompt)

    def pick(logits: Tensor) -> Tensor:
        if own is None:
            probabilities = (logits.float() / settings.temperature).softmax(-1).cpu()
        else:
            probabilities = own.probabilities(logits[0], seen, settings.temperature)[None]
        drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        seen.extend(drawn.tolist())
        return drawn.to(logits.device)

    return pick
