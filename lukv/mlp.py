"""Utility MLP: the utility probe's line and a small network for each layer and KV head. Ours: see docs/beyond.md.

    s = a + w.x + c.gelu(W x + b)       x: the probe's features of a token, without the constant

It is fitted in the probe's pass, to the probe's target, log(mean over the questions of U + eps). With `target`, another
scorer, it is fitted to log(t + eps), where t are that scorer's scores: KVzip+ needs extra passes over the prompt, and a
network that predicts its scores needs none (KVzap, arXiv 2601.07891, which reads hidden states instead).

a and w are the probe's, from all tokens. The network learns what they miss, from a sample of tokens of which every
context has the same part; so the state does not grow with the number of contexts. It starts from c = 0, and each head
keeps the network that was best on an eighth of its sample that is not learnt from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import gelu

from lukv.learned import LearnedScorer, Probe
from lukv.probe import SCALAR_FEATURES, ProbeFit, blocks, features
from lukv.scoring import PromptLayer, Scorer
from lukv.selection import Protection

ROWS, FROM_ONE = 4096, 512  # tokens of the sample, and of one context at most
STEPS, EVERY = 400, 20  # of the descent, and how often its weights are judged
UNSEEN = 8  # every so many rows of the sample one is kept to judge by


@dataclass(frozen=True)
class UtilityMLP(LearnedScorer):
    """`hidden`: units of a head's network. `eps`: what is added to the target before its logarithm. `ridge`: the
    probe's. `target`: whose scores are learnt; None: utility. All but `hidden` are used in the fit only."""

    needs_rope: ClassVar[bool] = True
    kind: ClassVar[str] = "utility MLP"
    name: str = "utility_mlp"
    eps: float = 1e-3
    ridge: float = 1e-2
    hidden: int = 16
    target: Scorer | None = None

    def __post_init__(self) -> None:
        if not self.eps > 0 or not self.ridge >= 0 or self.hidden < 1:
            raise ValueError(
                f"{self.name}: eps={self.eps} must be above 0, ridge={self.ridge} not negative, "
                f"hidden={self.hidden} at least 1"
            )

    @property
    def watcher(self) -> Scorer:
        return self.target or self

    def begin_fit(self) -> MLPFit:
        return MLPFit(self.eps, self.ridge, self.hidden, self.target)

    def count_weights(self, head_dim: int, value_dim: int) -> int:
        return sum(Network.sizes(head_dim + value_dim + SCALAR_FEATURES - 1, self.hidden))

    def score(self, layer: PromptLayer) -> Tensor:
        network = Network.unpack(self.read_weights(layer), self.hidden)
        return torch.cat([network(features(layer, at)[..., :-1].float()) for at in blocks(layer)], 1)


@dataclass(frozen=True)
class Network:
    """Of N heads: a [N, 1], w [N, F], b [N, hidden], c [N, hidden], W [N, F, hidden]."""

    a: Tensor
    w: Tensor
    b: Tensor
    c: Tensor
    W: Tensor

    @staticmethod
    def sizes(inputs: int, hidden: int) -> tuple[int, ...]:
        return 1, inputs, hidden, hidden, inputs * hidden

    @classmethod
    def unpack(cls, weights: Tensor, hidden: int) -> Network:
        """weights [N, n], as `pack` has them."""
        inputs = (weights.shape[1] - 1 - 2 * hidden) // (1 + hidden)
        a, w, b, c, W = weights.split(cls.sizes(inputs, hidden), dim=1)
        return cls(a, w, b, c, W.unflatten(1, (inputs, hidden)))

    def pack(self) -> Tensor:
        return torch.cat([part.flatten(1) for part in self.parts], 1)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.a, self.w, self.b, self.c, self.W

    def __call__(self, x: Tensor) -> Tensor:
        """x [N, n, F] -> [N, n]."""
        bent = gelu(torch.baddbmm(self.b[:, None], x, self.W)) @ self.c[..., None]
        return (torch.baddbmm(self.a[:, None], x, self.w[..., None]) + bent).squeeze(-1)

    def on_plain_inputs(self, mean: Tensor, scale: Tensor) -> Network:
        """The same function of x instead of (x - mean) * scale. Both are [N, F]."""
        w, W = self.w * scale, self.W * scale[..., None]
        shift = (mean[:, None] @ W).squeeze(1)
        return Network(self.a - (mean * w).sum(1, keepdim=True), w, self.b - shift, self.c, W)


@dataclass
class MLPFit:
    """The probe's sums, and the sample: x [layers, K, n, F] float16 and y [layers, K, n] float32, n <= ROWS."""

    eps: float = 1e-3
    ridge: float = 1e-2
    hidden: int = 16
    target: Scorer | None = None
    state: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, layers: Sequence[PromptLayer], utility: Tensor, protection: Protection) -> None:
        """Add one context to the line, and some of its tokens to the sample, the same ones in all layers and heads. A
        later context takes the places of earlier ones' tokens, at random, so that all have the same part."""
        worth = torch.stack([self._read_target(i, x, utility) for i, x in enumerate(layers)])
        line = self._read_line()
        line.add(layers, worth, protection)
        number = int(self.state.get("contexts", 0))
        random = np.random.default_rng(number)
        tokens = layers[0].keys.shape[1]
        free = np.flatnonzero(~protection.mask(tokens).numpy())
        held = self.state["y"].shape[-1] if self.state else 0
        wanted = min(len(free), FROM_ONE if held < ROWS else ROWS // (number + 1))
        at = torch.from_numpy(np.sort(random.choice(free, wanted, replace=False)))
        x = torch.stack([features(layer)[:, at.to(layer.keys.device), :-1].half().cpu() for layer in layers]).numpy()
        y = (worth[..., at] + self.eps).log().float().numpy()
        if self.state:
            new = min(ROWS - held, wanted)
            old = random.choice(held, wanted - new, replace=False)
            x, y = (self._place(self.state[key], rows, old) for key, rows in (("x", x), ("y", y)))
        self.state = {**line.state, "x": x, "y": y}

    def _read_line(self) -> ProbeFit:
        return ProbeFit(self.eps, self.ridge, {k: v for k, v in self.state.items() if k not in ("x", "y")})

    def _read_target(self, index: int, layer: PromptLayer, utility: Tensor) -> Tensor:
        """[K, T] on the CPU."""
        return (utility[index] if self.target is None else self.target.score(layer)).double().cpu()

    @staticmethod
    def _place(rows: np.ndarray, more: np.ndarray, old: np.ndarray) -> np.ndarray:
        """Rows [layers, K, n, ...] with the first of `more` in the places `old`, and the rest behind them."""
        rows = np.concatenate([rows, more[:, :, len(old) :]], axis=2)
        rows[:, :, old] = more[:, :, : len(old)]
        return rows

    def train(self) -> Network:
        """The networks of all layers x K heads. Raises ValueError if there is no context."""
        if not self.state:
            raise ValueError("no context was measured: there is nothing to fit a utility MLP to")
        line = torch.from_numpy(self._read_line().weights()).float().flatten(0, 1)
        x, y = (torch.from_numpy(self.state[key]).float().flatten(0, 1) for key in ("x", "y"))
        y = y - line[:, -1:] - (x @ line[:, :-1, None]).squeeze(-1)
        mean, deviation = x.mean(1), x.std(1, correction=0)
        scale = torch.where(deviation > 1e-6 * (1 + mean.abs()), 1 / deviation, 0)  # what never varies gets no weight
        z = (x - mean[:, None]) * scale[:, None]
        unseen = torch.arange(y.shape[1]) % UNSEEN == UNSEEN - 1
        found = descend(z[:, ~unseen], y[:, ~unseen], z[:, unseen], y[:, unseen], self.hidden)
        bend = found.on_plain_inputs(mean, scale)
        return replace(bend, a=bend.a + line[:, -1:], w=line[:, :-1])

    def save(self, path: str | Path, metadata: Mapping[str, Any]) -> None:
        packed = self.train().pack().unflatten(0, self.state["y"].shape[:2])
        taught = "utility" if self.target is None else self.target.parameters()
        about = {**metadata, "eps": self.eps, "target": taught, "contexts": int(self.state["contexts"])}
        Probe(packed.numpy().astype(np.float32), about, UtilityMLP.kind).save(path)


def descend(x: Tensor, y: Tensor, unseen_x: Tensor, unseen_y: Tensor, hidden: int) -> Network:
    """Networks without a line for x [N, n, F] and y [N, n], each as it was when it was best on the unseen rows."""
    count, inputs = len(x), x.shape[-1]
    generator = torch.Generator().manual_seed(0)
    nothing, none = torch.zeros(count, hidden), torch.zeros(count, inputs)
    random = torch.randn(count, inputs, hidden, generator=generator) / inputs**0.5
    best = [torch.zeros(count, 1), nothing, nothing.clone(), random]
    parts = [part.clone().requires_grad_() for part in best]

    def miss(some: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        """[N]: the mean square of what the networks are wrong by."""
        a, b, c, W = some
        return (Network(a, none, b, c, W)(x) - y).square().mean(1)

    least = miss(best, unseen_x, unseen_y)
    optimiser = torch.optim.AdamW(parts, lr=3e-3, weight_decay=1e-2)
    for step in range(1, STEPS + 1):
        with torch.enable_grad():
            optimiser.zero_grad()
            miss(parts, x, y).sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        if step % EVERY == 0:
            with torch.no_grad():
                now = miss(parts, unseen_x, unseen_y)
                for held, part in zip(best, parts, strict=True):
                    held[now < least] = part[now < least]
                least = torch.where(now < least, now, least)
    a, b, c, W = best
    return Network(a, none, b, c, W)
