"""The model's own rotary embedding as a function of positions, for scorers that rotate queries or keys."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lukv.scoring import Rope


def make_rope(model: PreTrainedModel, layer: int) -> Rope | None:
    """A function positions [n] -> (cos, sin), each [n, rotary dims] float32, as layer `layer` of the model uses them.
    None for a model or layer without rotary positions.

    The frequencies are those that the model has now, in a forward or after it. "dynamic" and "longrope" embeddings
    choose them by the longest position they are given: other prompts may change them later, and a scorer may ask for
    only a few positions, or for later ones.
    """
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    if rotary is None:
        return None
    options = {}
    if "layer_type" in inspect.signature(rotary.forward).parameters:  # Gemma-3: sliding layers have other frequencies
        config = model.config.get_text_config(decoder=True)
        options["layer_type"] = config.layer_types[layer]
        if config.rope_parameters.get(options["layer_type"], {}) is None:  # beam: full attention without positions
            return None

    frozen = copy(rotary)
    frozen._buffers = {name: None if held is None else held.clone() for name, held in rotary._buffers.items()}
    forward = inspect.unwrap(type(rotary).forward)  # without the decorator that chooses the frequencies anew

    def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
        like = torch.zeros(1, dtype=torch.float32, device=positions.device)  # forward() takes dtype and device from it
        cos, sin = forward(frozen, like, positions[None], **options)
        return cos[0], sin[0]

    return rope


def rope_of(model: PreTrainedModel, layer: int) -> Callable[[], Rope | None]:
    """`make_rope` for later: a function, as a deepcopy of a cache copies none, and so not the model."""
    return lambda: make_rope(model, layer)
