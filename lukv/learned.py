"""Scorers that are fitted to a model in job=calibrate before they can rank, and the file of what was fitted: a probe.

    begin_fit() -> a ScorerFit     sums over the calibration's contexts; `save` solves and writes the probe
    watcher                        who sees these contexts, and collects what ScorerFit.add reads
    load_fit(path) -> the scorer   with the probe at `path`, from then on a scorer like any other

A probe belongs to one model's weights. A scorer with another probe is another scorer, with budget tables of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from lukv.artifacts import (
    Target,
    calibrate_command,
    check_made_for,
    describe_model,
    read_tensors,
    reading,
    require,
    write_tensors,
)
from lukv.scoring import PromptLayer, Scorer
from lukv.selection import Protection


class ScorerFit(Protocol):
    """What the contexts so far say, as lukv.probe.ProbeFit. `state` holds all of it and is what is saved."""

    state: dict[str, np.ndarray]

    def add(self, layers: Sequence[PromptLayer], utility: Tensor, protection: Protection) -> None:
        """Add one context: its layers as the watcher saw them, and utility [layers, K, T], the mean over its questions,
        in units of the layer's mean value weight."""

    def save(self, path: str | Path, metadata: Mapping[str, Any]) -> None:
        """Solve, and write the probe with its metadata. Raises ValueError if there was no context."""


@dataclass(frozen=True)
class LearnedScorer(Scorer):
    """Base of scorers that read a probe. `path`: its file, as job=calibrate made it for this model. `any_weights`: use
    it for other weights of the same geometry too, such as another quantization of its checkpoint."""

    path: str = ""
    any_weights: bool = field(default=False, kw_only=True)

    kind: ClassVar[str]
    """What its probe is called in messages, and in its file."""

    @property
    def watcher(self) -> Scorer:
        """The scorer that sees the contexts of the fit."""
        return self

    def begin_fit(self) -> ScorerFit:
        """A fit of no context yet."""
        raise NotImplementedError

    def load_fit(self, path: str | Path) -> LearnedScorer:
        """The same scorer with the probe at `path`."""
        return replace(self, path=str(path))

    def count_weights(self, head_dim: int, value_dim: int) -> int:
        """How many numbers its probe has for each KV head."""
        raise NotImplementedError

    @cached_property
    def probe(self) -> Probe:
        return Probe.load(self.path, self.kind)

    def read_weights(self, layer: PromptLayer) -> Tensor:
        """[K, n] float32: what the probe says of this layer. Raises ValueError for another geometry."""
        # a single-head view cannot reveal the head count
        heads = len(layer.keys) if layer.head is None else self.probe.weights.shape[1]
        wanted = layer.layers, heads, self.count_weights(layer.keys.shape[-1], layer.values.shape[-1])
        if self.probe.weights.shape != wanted:
            made, asked = (
                "{} layers of {} KV heads and {} weights".format(*s) for s in (self.probe.weights.shape, wanted)
            )
            raise ValueError(f"the {self.kind} is for {made}, this model has {asked}")
        weights = self.probe.tensor[layer.index].to(layer.keys.device)
        return weights if layer.head is None else weights[[layer.head]]

    def parameters(self) -> dict[str, Any]:
        """The weights' hash instead of their path: another probe is another scorer, with a table of its own."""
        return {"name": self.name, "sink": self.sink, "recent": self.recent, "probe": self.probe.hash}

    def check(self, model: Target) -> None:
        """Raise ValueError unless the probe was fitted on this model, FileNotFoundError if there is none. With
        `any_weights` the weights are not compared."""
        wanted, command = describe_model(model), calibrate_command(model.name, self.name)
        check_made_for(self.path, self.probe.metadata, wanted, command, "scorer", self.any_weights)


@dataclass(frozen=True)
class Probe:
    """What was fitted. weights [layers, K, n] float32; metadata: on what it was fitted, as plain JSON; kind: which
    scorers' it is."""

    weights: np.ndarray
    metadata: dict[str, Any]
    kind: str

    @property
    def hash(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.weights).tobytes()).hexdigest()[:12]

    @cached_property
    def tensor(self) -> Tensor:
        return torch.from_numpy(self.weights)

    def save(self, path: str | Path) -> None:
        header = {"kind": f"lukv {self.kind}", "json": json.dumps(self.metadata, sort_keys=True)}
        write_tensors(path, {"weights": np.ascontiguousarray(self.weights)}, header)

    @classmethod
    def load(cls, path: str | Path, kind: str) -> Probe:
        """Read a probe. Raises FileNotFoundError for a missing file, and ValueError for anything that is not a whole
        and sound probe of this kind."""
        path = Path(path)
        require(path, kind)
        with reading(path, kind):
            tensors, header = read_tensors(path)
            if header.get("kind") != f"lukv {kind}" or "weights" not in tensors:
                raise ValueError(f"it holds {sorted(tensors)} and says it is {header.get('kind')!r}")
            weights = tensors["weights"]
            if weights.ndim != 3 or weights.dtype != np.float32 or not np.isfinite(weights).all():
                raise ValueError(f"its weights are {weights.dtype} {list(weights.shape)} or not finite")
            return cls(weights, json.loads(header["json"]), kind)
