"""A layer's output projection W_O, read from the model's weights."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from transformers import PreTrainedModel

from lukv.backend.config import find_windows
from lukv.scoring import Scorer


def check_output(model: PreTrainedModel, scorers: Iterable[Scorer]) -> None:
    """Raise ValueError if a scorer weighs values by an output projection that cannot be read."""
    if any(scorer.needs_output for scorer in scorers):
        layers = getattr(model.get_decoder(), "layers", None)
        for index, window in enumerate(find_windows(model.config)):
            if window is None:
                attention = None if layers is None else getattr(layers[index], "self_attn", None)
                read_output(getattr(attention, "o_proj", None), index)


def read_output(projection: nn.Module | None, index: int) -> Tensor:
    """W_O [hidden, H * dv] of layer `index`. Raises ValueError if there is none, or if it cannot be read."""
    if projection is None:
        raise ValueError(f"layer {index} has no self_attn.o_proj, by which the scorer weighs values: choose another")
    return read_weight(projection, f"layer {index}")


def read_weight(projection: nn.Module, where: str) -> Tensor:
    """The weight of a linear layer as floats. torch's dynamically quantized layers unpack theirs. Raises ValueError for
    other quantized weights: their integers mean nothing without scales."""
    weight = projection.weight() if callable(projection.weight) else projection.weight
    if not isinstance(weight, Tensor) or not (weight.is_quantized or weight.is_floating_point()):
        raise ValueError(f"{where} has quantized output weights, which cannot be read: load it dequantized")
    return weight.detach().dequantize() if weight.is_quantized else weight.detach()
