"""Which lengths of a row a model's cached keys are right for: some models change rotary factors with the length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from lukv.backend.config import read_field


@dataclass(frozen=True)
class Lengths:
    """switch: the length past which a model takes other rotary factors ("longrope", as in Phi-3), so that the keys of a
    shorter row do not fit a longer one. limit: the most tokens that a row may have, and why. None: there is none."""

    model: str
    switch: int | None = None
    limit: int | None = None
    why: str = ""

    def check(self, before: np.ndarray, after: np.ndarray) -> None:
        """before, after [B] int64: tokens of each row without and with the new ones. Raises ValueError."""
        if self.limit is not None and after.max() > self.limit:
            raise ValueError(
                f"a row has {int(after.max())} tokens, this {self.model} takes at most {self.limit} here: {self.why}"
            )
        switch = self.switch
        if switch is None:
            return
        if ((before > 0) & (before <= switch) & (after > switch)).any():
            raise ValueError(
                f"the input grows past {switch} tokens, where {self.model} changes its rotary "
                "factors and cached keys no longer fit: stay below, or prefill a longer prompt in one piece"
            )
        if after.min() <= switch < after.max():
            raise ValueError(
                f"the rows of this batch are shorter and longer than {switch} tokens, where {self.model} changes its "
                "rotary factors, and a batch has the same for all rows: run them in batches apart"
            )


def find_lengths(config: PreTrainedConfig) -> Lengths:
    """What the config says of a model's rotary factors and of a window that is as wide as its positions."""
    config = config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # one for each type of layer (Gemma-3)
    limits = []
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and any("dynamic" in str(part.get("rope_type")) for part in kinds):
        # transformers takes the factors back only below this length, so a row of just so many tokens depends on others
        why = "from there on its rotary factors change with every token ('dynamic'), and cached keys no longer fit"
        limits.append((positions - 1, why))
    window = read_field(config, "sliding_window")
    if window is not None and getattr(config, "layer_types", None) is None:
        limits.append((window, "every layer has a sliding window of so many, and what leaves it is not evicted yet"))
    limit, why = min(limits, default=(None, ""))
    long = next((part for part in kinds if part.get("rope_type") == "longrope"), None)
    switch = None
    if long is not None:
        key = "original_max_position_embeddings"
        switch = long.get(key) or getattr(config, key, None)
    return Lengths(config.model_type, switch, limit, why)


def check_factors(model: PreTrainedModel) -> None:
    """Raise RuntimeError if the model's "dynamic" rotary factors are not the original ones after a forward within the
    lengths that `find_lengths` allows. transformers 5.2 never takes back those of a longer input, whatever ran it."""
    rotary: Any = getattr(model.get_decoder(), "rotary_emb", None)
    if "dynamic" not in str(getattr(rotary, "rope_type", "")) or isinstance(rotary.rope_type, dict):
        return
    if not torch.equal(rotary.inv_freq, rotary.original_inv_freq.to(rotary.inv_freq.device)):
        raise RuntimeError(
            f"an earlier, longer input has left its rotary factors in this {model.config.model_type}, and this version "
            "of transformers does not take them back: load the model again"
        )
