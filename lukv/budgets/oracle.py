"""The oracle of LU-KV (arXiv 2602.08585): what each context token will be worth to the answer.

    U[k, j] = max over decode steps t, max over query heads h of group k, of A_t[h, j] * n[h, j] n[h, j] = |W_O^h
    v_j|, divided by the layer's sum over all heads and context tokens (which makes layers comparable)

A_t is the attention of the step that decides token t of the answer, with everything in the cache: softmax over all
visible keys, cut to the context. The step that decides the first token is the question's last row. Only those rows
are needed, so the prefill is ordinary flash attention and nothing of size T x T or T x hidden exists.

Options that depart from the paper's code: greedy or reference answers instead of sampled ones, the question's other
rows counted too, the paper's formula without the division by the layer's sum. One that follows it: first_row=False
leaves the question's last row out, as that code looks at forwards of one token only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lukv.backend.cache import RaggedCache
from lukv.backend.generate import Stop, answer, append, compress
from lukv.budgets.sampling import Sampling
from lukv.eviction import Protection, protect, rank
from lukv.model import LoadedModel
from lukv.scoring import PromptLayer, Scorer, row_mass

CONTINUATIONS = ("greedy", "sampled", "reference")


@dataclass(frozen=True)
class OracleSettings:
    """horizon: at most so many decode steps (fewer if the answer ends). continuation: what is decoded; `sampled` draws
    at `temperature` from a generator seeded by (seed, question index), `reference` is the answer handed in.
    own_sampling: `sampled` with the top_k, top_p and repetition penalty of the model's generation config. first_row:
    count the row that decides the answer's first token, the question's last; False looks at forwards of one token only,
    as the authors' code does: 63 rows of 64 tokens. question_rows: count the rows of the question too. normalise:
    divide the value weights by the layer's sum."""

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


def output_gram(projection: Tensor, heads: int) -> Tensor:
    """W_O [hidden, H * dv] -> [H, dv, dv], each head's W^T W, so that |W v|^2 = v^T (W^T W) v without W v. In float32
    (float64 for float64)."""
    blocks = projection.detach().to(_accumulate(projection)).unflatten(1, (heads, -1)).transpose(0, 1)
    return blocks.transpose(1, 2) @ blocks


@torch.no_grad()
def value_weight(values: Tensor, gram: Tensor, normalise: bool = True, block: int = 512) -> Tensor:
    """n [H, T]: how long each head's output projection leaves each token's value. values [K, T, dv], gram [H, dv,
    dv]. Scratch beside the result: `block` tokens."""
    heads, tokens = len(gram), values.shape[1]
    grouped = gram.unflatten(0, (len(values), -1))
    weight = gram.new_empty(heads, tokens)
    for start in range(0, tokens, block):
        v = values[:, None, start : start + block].to(gram.dtype)
        square = ((v @ grouped) * v).sum(-1)
        weight[:, start : start + block] = square.clamp(min=0).sqrt().flatten(0, 1)
    return weight / weight.sum() if normalise else weight


@torch.no_grad()
def utility(queries: Tensor, keys: Tensor, weight: Tensor, scale: float, softcap: float | None = None) -> Tensor:
    """U [K, T] of one layer, float32 (float64 for float64).

    queries [H, n, d]: post-RoPE rows of the decode steps, which are the newest n entries of keys [K, T + m, d] (m >=
    n: the question and the answer come after the T context tokens); weight [H, T] from `value_weight`.
    """
    tokens, rows = weight.shape[1], queries.shape[1]
    if not 0 < rows <= keys.shape[1] - tokens:
        raise ValueError(f"{rows} rows cannot come after {tokens} context tokens in a cache of {keys.shape[1]}")
    first = keys.shape[1] - rows
    mass = row_mass(queries, keys, scale, first, softcap, reduce="max", columns=tokens)  # max over steps: n is the same
    return (mass * weight).unflatten(0, (len(keys), -1)).amax(1)


class Oracle:
    """Measures utilities with one model."""

    def __init__(self, loaded: LoadedModel, settings: OracleSettings | None = None) -> None:
        self.loaded, self.settings = loaded, settings or OracleSettings()
        self.grams = output_grams(loaded)

    def context(self, ids: Sequence[int], scorers: Sequence[Scorer] = ()) -> MeasuredContext:
        """Prefill a context, keep everything, show its queries to the scorers that are to rank it."""
        cache = compress(
            self.loaded.model, [list(ids)], attention=self.loaded.attention, observe=scorers, record_queries=True
        )
        return MeasuredContext(self, cache, ids)


class MeasuredContext:
    """One context in the cache: what scorers think of its tokens, and what they turn out to be worth to each
    question."""

    def __init__(self, oracle: Oracle, cache: RaggedCache, ids: Sequence[int]) -> None:
        self.oracle, self.cache, self.ids, self.tokens = oracle, cache, ids, len(ids)
        self.weights = [
            value_weight(cache.entries(layer, 0)[1], gram, oracle.settings.normalise)
            for layer, gram in enumerate(oracle.grams)
        ]

    def order(self, scorer: Scorer, protection: Protection, utility: Tensor | None = None) -> Tensor:
        """[layers, K, T] int64 on the CPU: each head's tokens best first, by the run-time scorer, protection and tie
        rule. The scorer must be among those that `context` was given. `utility` [layers, K, T]: of the question at
        hand, for a scorer that must know it (Scorer.needs_utility)."""
        layers = self.layers(scorer)
        if utility is not None:
            layers = [replace(layer, observed=worth) for layer, worth in zip(layers, utility, strict=True)]
        scores = [scorer.score(layer) for layer in layers]
        return torch.stack([rank(protect(s, protection.over(scorer), scorer.name)).cpu() for s in scores])

    def layers(self, scorer: Scorer) -> list[PromptLayer]:
        """What the scorer sees of the context."""
        views = []
        for index, layer in enumerate(self.cache.evictable):
            keys, values = (entries[:, : self.tokens] for entries in self.cache.entries(index, 0))
            views.append(layer.view(0, keys, values, scorer))
        return views

    @property
    def units(self) -> Tensor:
        """[layers, 1, 1] float32 (float64 for float64) on the CPU: each layer's mean value weight. A utility in this
        unit is an attention probability at a token of average value, whatever the model and the length."""
        return torch.stack([weight.mean().cpu() for weight in self.weights])[:, None, None]

    def utility(
        self,
        question: Sequence[int],
        reference: Sequence[int] | None = None,
        index: int = 0,
        stop: Stop | None = None,
    ) -> Tensor:
        """[layers, K, T] on the CPU: the utility of the context's tokens to one question. `reference`: the answer,
        for continuation=reference. `index` tells the questions' random numbers apart. `stop` ends a decoded answer
        early. The cache is rolled back afterwards. Zeros where no row counts: an answer of one token without the first
        row."""
        rows = self._decode(list(question), reference, index, stop)
        layers = []
        for layer, weight in enumerate(self.weights):
            if rows == 0:
                layers.append(weight.new_zeros(len(self.cache.entries(layer, 0)[0]), self.tokens).cpu())
                continue
            _, scale, softcap = self.cache.evictable[layer].attributes
            queries = self.cache.future_queries(layer)[0, :, -rows:]
            layers.append(utility(queries, self.cache.entries(layer, 0)[0], weight, scale, softcap).cpu())
        self.cache.rollback()
        return torch.stack(layers)

    def _decode(self, question: list[int], reference: Sequence[int] | None, index: int, stop: Stop | None) -> int:
        """Append the question and decode behind it; how many of the newest rows count."""
        settings, model = self.oracle.settings, self.oracle.loaded.model
        if settings.continuation == "reference":
            if not reference:
                raise ValueError(
                    "continuation=reference needs a reference answer of at least one token for each question"
                )
            steps = min(settings.horizon, len(reference))
            append(model, self.cache, [[*question, *reference[: steps - 1]]])  # the last token decides nothing more
        else:
            # with a pick every token is looked at: no step after the answer's end counts, on a GPU either
            pick = self._sampler(question, index) if settings.continuation == "sampled" else greedy
            eos = self.oracle.loaded.eos_ids
            steps = answer(model, self.cache, [question], settings.horizon, eos, stop, pick).steps
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
    """logits [1, vocabulary] -> a drawn token [1]; the same draws for the same seed and index. own: the model's own way
    to draw, which may look at the tokens of `prompt` and of the answer so far."""
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


def output_grams(loaded: LoadedModel) -> list[Tensor]:
    """The Gram matrices of each evictable layer's output projection, [H, dv, dv] on the layer's device."""
    layers = loaded.model.get_decoder().layers
    grams = []
    for index in RaggedCache(loaded.model).model_layers:
        projection = getattr(layers[index].self_attn, "o_proj", None)
        if projection is None:
            raise ValueError(f"{loaded.name}: layer {index} has no self_attn.o_proj, which the oracle needs")
        grams.append(output_gram(projection.weight, loaded.config.num_attention_heads))
    return grams


def _accumulate(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
