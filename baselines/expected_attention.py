"""Expected Attention (Devoto et al. 2025, arXiv 2510.00636; kvpress): how would a random future query attend to a key?

Queries before RoPE are modelled as Gaussian. For each query head, over the tokens at positions >= sink:

    mu = mean q,  S = covariance of q (divided by N)            bias and query norm included
    R  = mean of the RoPE matrices of the next `future` positions;  mu <- R mu,  S <- R S R^T
    logit = scale * mu.k + scale^2 / 2 * k^T S k                softmax over the tokens at positions >= sink
    s = (mean over the group + eps) * |v|

The queries before RoPE are the post-RoPE ones with the model's own rotary embedding undone, so nothing but the
attention's inputs is needed. The moments are sums, so the prompt may come in chunks. The first `sink` tokens are
protected. The LU-KV authors' program for calibration has them in the softmax (`sinks_in_softmax`); their scorer at run
time, as kvpress's, has not.

Differences from kvpress: sums are float64, of float32 products of up to 1024 tokens where queries have 16 bits, else of
float64 products (kvpress: the model's dtype). A prompt of at most `sink` tokens has score 0 (kvpress: an assertion).
Neither models a logit soft cap. eps = 0.02 is the value of LU-KV's tables; kvpress's default is 0. It is far above a
typical softmax value, so that the ranking is almost the ranking by |v|.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lukv.ops import rotate
from lukv.scoring import PromptLayer, Rope, Scorer

BLOCK, HEADS = 1024, 2  # tokens and query heads at a time, so that they stay in a CPU's cache
STRIP = 64  # rows of a symmetric matrix at a time
KEYS = 256  # tokens at a time whose keys are multiplied
LATER = ("sinks_in_softmax", False)  # a parameter that came later, with what was done before


class Moments(NamedTuple):
    """Sums over the observed queries, float64: their number n, sum q [H, d], and sum q q^T [H, d, d]."""

    n: int
    total: Tensor
    outer: Tensor


@dataclass(frozen=True)
class ExpectedAttention(Scorer):
    """`future`: how many next positions to average over. `eps` is added to the attention. The first `sink` tokens are
    left out and protected. With `sinks_in_softmax` they are left out of the statistics only."""

    needs_rope: ClassVar[bool] = True
    name: str = "expected_attention"
    sink: int = 4
    future: int = 512
    eps: float = 0.02
    sinks_in_softmax: bool = False

    def __post_init__(self) -> None:
        if self.future < 1 or self.eps < 0:
            raise ValueError(
                f"expected_attention: future={self.future} must be at least 1, eps={self.eps} not negative"
            )

    def observe(self, observed: Moments | None, queries: Tensor, start: int, rope: Rope | None) -> Moments | None:
        heads, tokens, width = queries.shape
        first = max(self.sink - start, 0)
        if first >= tokens:
            return observed
        if observed is None:
            outer = queries.new_zeros(heads, width, width, dtype=torch.float64)
            observed = Moments(0, outer[..., 0], outer)
        total, outer = observed.total.clone(), observed.outer.clone()
        dtype = torch.float32 if queries.element_size() == 2 else torch.float64
        block, together = (4096, heads) if queries.is_cuda else (BLOCK, HEADS)  # a GPU wants few launches
        for a in range(first, tokens, block):
            chunk = queries[:, a : a + block]
            if rope is not None:
                cos, sin = (x.to(dtype) for x in rope(start + a + torch.arange(chunk.shape[1], device=chunk.device)))
                square = cos**2 + sin**2  # 1, except for rotary embeddings with an attention factor
                undo = cos / square, -sin / square
            for some in range(0, heads, together):
                part = slice(some, some + together)
                q = chunk[part].to(dtype)
                if rope is not None:
                    q = rotate(q, *undo)
                total[part] += q.sum(1)
                for i in range(0, width, STRIP):  # q q^T is symmetric: what lies below these strips is copied
                    outer[part, i : i + STRIP, i:] += q[..., i : i + STRIP].mT @ q[..., i:]
        for i in range(0, width, STRIP):
            outer[:, i + STRIP :, i : i + STRIP] = outer[:, i : i + STRIP, i + STRIP :].mT
        return Moments(observed.n + tokens - first, total, outer)

    def score(self, layer: PromptLayer) -> Tensor:
        heads, tokens = layer.keys.shape[:2]
        scores = torch.zeros(heads, tokens, device=layer.keys.device)
        first = self.sink if layer.positions is None else int((layer.positions < self.sink).sum())
        if tokens > first:
            keys = layer.keys if self.sinks_in_softmax else layer.keys[:, first:]
            expected = self._logits(layer, keys.float()).softmax(-1).mean(1)[:, first - tokens :]
            length = layer.values[:, first:].float().norm(dim=-1)
            scores[:, first:] = (expected + self.eps) * length
        return scores

    def parameters(self) -> dict[str, Any]:
        """Without `sinks_in_softmax` where it is False: tables made before there was this choice stay valid."""
        return {name: value for name, value in super().parameters().items() if (name, value) != LATER}

    def _logits(self, layer: PromptLayer, keys: Tensor) -> Tensor:
        """[K, G, n]: the logarithm of the expected unnormalised attention of each query head to keys [K, n, d]."""
        n, total, outer = layer.observed
        mean = total / n
        covariance = (outer / n - mean[:, :, None] * mean[:, None, :]).float()
        mean = mean.float()
        if layer.rope is not None:
            cos, sin = layer.rope(torch.arange(layer.tokens, layer.tokens + self.future, device=keys.device))
            cos, sin = cos.double().mean(0).float(), sin.double().mean(0).float()
            mean = rotate(mean, cos, sin)
            covariance = rotate(rotate(covariance, cos, sin).mT, cos, sin).mT
        mean = mean.unflatten(0, (len(keys), 1, -1)) * layer.scale
        covariance = covariance.unflatten(0, (len(keys), -1)) * layer.scale**2 / 2
        logits = keys.new_empty(len(keys), mean.shape[2], keys.shape[1])
        block = 4096 if keys.is_cuda else KEYS
        for k, out in zip(keys.split(block, 1), logits.split(block, 2), strict=True):
            for g in range(mean.shape[2]):  # (mu + S k).k for one query head of each group at a time
                out[:, g] = torch.baddbmm(mean[:, :, g], k, covariance[:, g]).mul_(k).sum(-1)
        return logits
