"""Utility probe: it predicts a token's utility, linearly, from the token's key and value. Ours: see docs/beyond.md.

    x = [k before RoPE, v, |v|, mean k^2, cos(k, a), 1]             of one token in one KV head
    a = mean over the prompt's tokens of k/|k|, after RoPE          the anchor of KeyDiff (arXiv 2504.15364)
    y = log(mean over the questions of U + eps)                     U: lukv/budgets/oracle.py
    w = argmin mean (x.w - y)^2 + ridge * sum_i var(x_i) w_i^2      per layer and KV head, in closed form

U is measured in units of the layer's mean value weight. It is then the attention probability of a token of average
value: eps = 1e-3 means one thousandth of the attention, whatever the model, the layer and the prompt's length.
Protected tokens are left out of the fit, because they rank first in any case. Every context weighs the same. `ProbeFit`
sums x'x and x'y in float64, so memory does not grow with the number of contexts.

At run time a probe is a scorer like any other. It computes one product per token, of keys and values as they are
cached: RoPE is applied to the weights, not undone on the keys. It needs no queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from lukv.learned import LearnedScorer, Probe
from lukv.ops import rotate
from lukv.scoring import PromptLayer, Rope
from lukv.selection import Protection

SCALAR_FEATURES = 4  # features of a token beside its key and its value
BLOCK = 512  # tokens at a time on a CPU, so that they stay in its cache
LARGE_BLOCK = 8192  # tokens at a time on a GPU: few, large launches, and little memory beside a long prompt


@dataclass(frozen=True)
class UtilityProbe(LearnedScorer):
    """`eps` and `ridge` are used in the fit only."""

    needs_rope: ClassVar[bool] = True
    kind: ClassVar[str] = "utility probe"
    name: str = "utility_probe"
    eps: float = 1e-3
    ridge: float = 1e-2

    def __post_init__(self) -> None:
        if not self.eps > 0 or not self.ridge >= 0:
            raise ValueError(f"{self.name}: eps={self.eps} must be above 0, ridge={self.ridge} not negative")

    def begin_fit(self) -> ProbeFit:
        """Empty sums, to be fitted with this scorer's `eps` and `ridge`."""
        return ProbeFit(self.eps, self.ridge)

    def count_weights(self, head_dim: int, value_dim: int) -> int:
        return head_dim + value_dim + SCALAR_FEATURES

    def score(self, layer: PromptLayer) -> Tensor:
        heads, tokens, d = layer.keys.shape
        weights = self.read_weights(layer)[:, None]  # [K, 1, ...]: a row times a matrix is fast on a CPU
        w_key, w_value, w_rest = weights.split([d, layer.values.shape[-1], SCALAR_FEATURES], dim=-1)
        direction = anchor(layer.keys).float()[:, None]
        scores = torch.empty(heads, tokens, device=layer.keys.device)
        for at in blocks(layer):
            keys, values = layer.keys[:, at].float(), layer.values[:, at].float()
            total = w_value @ values.mT + w_rest @ scalar_features(keys, values, direction).mT
            if layer.rope is None:
                total += w_key @ keys.mT
            else:  # RoPE of the weights: the weights times cos, plus their quarter turn times sin
                cos, sin = angles(layer.rope, layer.token_positions(at), keys)
                total += w_key @ (keys * cos).mT + quarter_turn(w_key, layer.rope) @ (keys * sin).mT
            scores[:, at] = total[:, 0]
        return scores


def features(layer: PromptLayer, at: slice = slice(None)) -> Tensor:
    """x [K, n, d + dv + SCALAR_FEATURES] of the tokens `at`, float32 (float64 for float64)."""
    keys, values = (part[:, at].to(precision(part)) for part in (layer.keys, layer.values))
    plain = keys
    if layer.rope is not None:
        cos, sin = angles(layer.rope, layer.token_positions(at), keys)
        plain = keys * cos - quarter_turn(keys, layer.rope) * sin
    return torch.cat([plain, values, scalar_features(keys, values, anchor(layer.keys)[:, None])], -1)


def scalar_features(keys: Tensor, values: Tensor, direction: Tensor) -> Tensor:
    """[K, n, SCALAR_FEATURES]: |v|, mean k^2, cos(k, a) and 1. direction [K, 1, d] is a / |a|."""
    length, norm = (torch.linalg.vector_norm(part, dim=-1) for part in (keys, values))
    cosine = (direction @ keys.mT)[:, 0] / length.clamp(min=1e-12)
    return torch.stack([norm, length.square() / keys.shape[-1], cosine, torch.ones_like(norm)], -1)


def anchor(keys: Tensor) -> Tensor:
    """a / |a| [K, d]: the direction that the keys [K, T, d] have in common. float32 (float64 for float64)."""
    keys = keys.to(precision(keys))
    length = torch.linalg.vector_norm(keys, dim=-1).clamp(min=1e-12)
    return normalize(((1 / length)[:, None] @ keys)[:, 0], dim=-1)


def angles(rope: Rope, positions: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [n, d] that undo RoPE at positions [n] for keys [K, n, d].

    They are 1 and 0 in dimensions that RoPE leaves alone. If the embedding scales by an attention factor, they divide
    by it.
    """
    cos, sin = (part.to(keys.dtype) for part in rope(positions))
    square, rest = cos**2 + sin**2, (0, keys.shape[-1] - cos.shape[-1])
    return pad(cos / square, rest, value=1.0), pad(sin / square, rest)


def quarter_turn(x: Tensor, rope: Rope) -> Tensor:
    """x [..., d] rotated by 90 degrees in each plane of the rotary embedding, and 0 in the other dimensions."""
    n = rope(torch.zeros(1, device=x.device))[0].shape[-1]
    return rotate(x, x.new_zeros(n), x.new_ones(n)) - pad(x[..., n:], (n, 0))


def blocks(layer: PromptLayer) -> list[slice]:
    """Slices of the layer's tokens that are computed at a time."""
    tokens, size = layer.keys.shape[1], LARGE_BLOCK if layer.keys.is_cuda else BLOCK
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def precision(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@dataclass
class ProbeFit:
    """The normal equations, streamed. `state` holds all sums as plain arrays; a fit that continues from a saved state
    ends with the same bits."""

    eps: float = 1e-3
    ridge: float = 1e-2
    state: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, layers: Sequence[PromptLayer], utility: Tensor, protection: Protection) -> None:
        """Add one context: its layers, and utility [layers, K, T], the mean over its questions, in units of the layer's
        mean value weight."""
        xx, xy = [], []
        for layer, worth in zip(layers, utility, strict=True):
            tokens = layer.keys.shape[1]
            free = ~protection.mask(tokens, layer.keys.device)
            target = (worth.to(layer.keys.device, torch.float64) + self.eps).log()
            outer = inner = torch.zeros((), dtype=torch.float64, device=layer.keys.device)
            for at in blocks(layer):
                x = features(layer, at)[:, free[at]].double()
                y = target[:, at][:, free[at]]
                outer, inner = outer + x.mT @ x, inner + (x.mT @ y[..., None]).squeeze(-1)
            xx.append((outer / free.sum()).cpu().numpy())
            xy.append((inner / free.sum()).cpu().numpy())
        sums = {"xx": np.stack(xx), "xy": np.stack(xy), "contexts": np.ones(())}
        if self.state and self.state["xx"].shape != sums["xx"].shape:
            raise ValueError("the saved state of the probe belongs to another model or version")
        self.state = {name: np.asarray(self.state.get(name, 0) + value) for name, value in sums.items()}

    def weights(self) -> np.ndarray:
        """[layers, K, d + dv + SCALAR_FEATURES] float64. Raises ValueError if there is no context."""
        if not self.state:
            raise ValueError("no context was measured: there is nothing to fit a probe to")
        # the last feature is the constant 1, so its row of x'x holds the means
        second, target = (self.state[name] / self.state["contexts"] for name in ("xx", "xy"))
        mean, level = second[..., :-1, -1], target[..., -1]
        covariance = second[..., :-1, :-1] - mean[..., :, None] * mean[..., None, :]
        slope = target[..., :-1] - mean * level[..., None]
        variance = np.diagonal(covariance, axis1=-2, axis2=-1)
        known = (
            variance > 1e-12 * second.diagonal(axis1=-2, axis2=-1)[..., :-1]
        )  # a feature that never varies gets weight 0
        penalty = np.where(known, self.ridge * variance, 1.0)
        both = known[..., :, None] & known[..., None, :]
        system = np.where(both, covariance, 0) + penalty[..., None] * np.eye(penalty.shape[-1])
        weights = np.linalg.solve(system, np.where(known, slope, 0)[..., None])[..., 0]
        return np.concatenate([weights, (level - (weights * mean).sum(-1))[..., None]], axis=-1)

    def save(self, path: str | Path, metadata: Mapping[str, Any]) -> None:
        """Solve, and write the probe with its metadata to a file."""
        about = {**metadata, "eps": self.eps, "ridge": self.ridge, "contexts": int(self.state["contexts"])}
        Probe(self.weights().astype(np.float32), about, UtilityProbe.kind).save(path)
