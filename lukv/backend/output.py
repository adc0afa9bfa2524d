"""A layer's output projection W_O, read from the model's weights, and what values are worth behind it."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from lukv.backend.config import find_windows
from lukv.ops import output_gram


def output_grams(model: PreTrainedModel) -> list[Tensor]:
    """`lukv.ops.output_gram` of each layer that can be evicted, [H, dv, dv] on the layer's device.

    Raises ValueError for a model whose attention has no `o_proj`, or whose weights cannot be read.
    """
    heads = int(model.config.get_text_config(decoder=True).num_attention_heads)
    return [output_gram(weight, heads) for weight in read_projections(model)]


def read_projections(model: PreTrainedModel) -> list[Tensor]:
    """W_O [hidden, H * dv] of each layer that can be evicted. Raises ValueError as `output_grams` does."""
    weights = []
    for index, layer in list_full_layers(model):
        projection = getattr(getattr(layer, "self_attn", None), "o_proj", None)
        weights.append(read_output(projection, f"layer {index} of this {model.config.model_type}"))
    return weights


def list_full_layers(model: PreTrainedModel) -> list[tuple[int, nn.Module | None]]:
    """(index in the model, the layer) of each layer that can be evicted; None where the model does not show it."""
    layers = getattr(model.get_decoder(), "layers", None)
    windows = find_windows(model.config)
    return [(i, None if layers is None else layers[i]) for i, window in enumerate(windows) if window is None]


def read_output(projection: nn.Module | None, where: str) -> Tensor:
    """W_O [hidden, H * dv] of the layer that `where` names. Raises ValueError if there is none, or if it cannot be
    read."""
    if projection is None:
        raise ValueError(f"{where} has no self_attn.o_proj, by which values are weighed")
    return read_weight(projection, where)


def read_weight(projection: nn.Module, where: str) -> Tensor:
    """The weight of a linear layer as floats. torch's dynamically quantized layers unpack theirs. Raises ValueError for
    other quantized weights: their integers mean nothing without scales."""
    weight = projection.weight() if callable(projection.weight) else projection.weight
    if not isinstance(weight, Tensor) or not (weight.is_quantized or weight.is_floating_point()):
        raise ValueError(f"{where} has quantized output weights, which cannot be read: load it dequantized")
    return weight.detach().dequantize() if weight.is_quantized else weight.detach()
