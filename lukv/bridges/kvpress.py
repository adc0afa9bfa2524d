"""kvpress's presses on this backend: what a press keeps of a prompt becomes a RaggedCache, and its memory is freed.

kvpress prunes some layers of its cache and leaves others whole. In these it names the entries that no query may see
(`masked_key_indices` of the attention module), and they stay in memory. Here the press runs as it is, under its own
context manager and transformers' own attention. What it kept is packed, and this backend decodes on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lukv.backend.architecture import unwrap
from lukv.backend.attention import use_ragged_attention
from lukv.backend.cache import CacheState, LayerState, RaggedCache
from lukv.backend.config import find_windows
from lukv.backend.forward import Loaded
from lukv.backend.quantized import Part

try:
    import kvpress
    from kvpress.presses.base_press import BasePress
except ImportError as error:
    raise ImportError(
        f"lukv.bridges.kvpress needs kvpress ({error}): pip install kvpress==0.5.5, which takes transformers up to 5.2"
    ) from error

UNKNOWN = -1
"""The position of an entry in a layer that kvpress pruned: it does not say which ones it kept."""


@torch.no_grad()
def compress(
    model: PreTrainedModel | Loaded,
    input_ids: Tensor | Sequence[Sequence[int]],
    press: BasePress,
    *,
    prefill: str = "sdpa",
    attention: str | None = None,
) -> RaggedCache:
    """Run the prompt under `press` and pack what it keeps, for `answer`, `append` and `model.generate`.

    input_ids [B, T]: rows of the same length, as kvpress knows no padding. prefill: the attention of transformers that
    the press runs under; "eager" for one that reads attention weights (ObservedAttentionPress). attention: the decode
    kernel; None: what the model was loaded with.

    Afterwards the model runs on this backend's attention, or on what it had before where the press fails. While the
    prompt comes in, the cache is kvpress's own, with its memory. Positions of entries in layers that the press pruned
    are UNKNOWN. Raises ValueError for a press that works while tokens are decoded, and for what this backend cannot
    run.
    """
    network = unwrap(model)
    check_press(press)
    if any(find_windows(network.config)):
        raise ValueError(
            f"{network.config.model_type} has layers with a sliding window, which kvpress prunes as if they had none"
        )
    ids = stack_rows(input_ids).to(network.device)
    before = network.config._attn_implementation
    network.set_attn_implementation(prefill)
    try:
        theirs = run_press(network, ids, press)
    except BaseException:
        network.set_attn_implementation(before)
        raise
    use_ragged_attention(network)
    tokens = count_tokens(press, ids, theirs)
    held: list[Any] = theirs.layers
    devices = [layer.keys.device for layer in held]
    layers = [pack_layer(held.pop(0), module, tokens) for module in find_attention(network)]  # each frees its memory
    state = CacheState(tokens, np.full(len(ids), tokens), layers)
    kernel = attention or str(getattr(model, "attention", "auto"))
    return RaggedCache.from_state(network, state, devices, kernel)


def check_press(press: BasePress) -> None:
    """Raise ValueError for what is no press, and for one whose work is not done after the prompt."""
    if not isinstance(press, BasePress):
        raise ValueError(f"press={press!r} is no press of kvpress")
    for part in getattr(press, "presses", [press]):
        if isinstance(part, kvpress.PrefillDecodingPress):
            raise ValueError("PrefillDecodingPress also evicts while tokens are decoded: give its prefilling_press")
        if isinstance(part, kvpress.DecodingPress) or getattr(part, "decoding", False):
            raise ValueError(
                f"{type(part).__name__} evicts while tokens are decoded, by hooks that do not run on this backend: "
                "only what a press does to the prompt can be packed"
            )


def stack_rows(input_ids: Tensor | Sequence[Sequence[int]]) -> Tensor:
    """[B, T] int64. Raises ValueError for rows of different lengths."""
    lengths = {len(row) for row in input_ids}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"the rows have {' and '.join(map(str, sorted(lengths))) or 'no'} tokens: kvpress knows no padding, so all "
            "must have the same number and at least one"
        )
    return torch.as_tensor(input_ids)


def run_press(model: PreTrainedModel, ids: Tensor, press: BasePress) -> DynamicCache:
    """kvpress's cache after the prompt, as its own pipeline makes it."""
    for module in find_attention(model):
        module.masked_key_indices = None  # eager attention does not take an earlier press's away
    cache = DynamicCache()
    with press(model):
        model.model(input_ids=ids, past_key_values=cache)
    return cache


def find_attention(model: PreTrainedModel) -> list[Any]:
    """The attention module of each layer, where kvpress looks for them."""
    decoder: Any = getattr(model.model, "language_model", model.model)
    return [layer.self_attn for layer in decoder.layers]


def count_tokens(press: BasePress, ids: Tensor, cache: DynamicCache) -> int:
    """The position of the next token, as kvpress's own pipeline counts it: behind the entries where a press moved the
    keys to the front or added tokens of its own, else behind the prompt."""
    moves = isinstance(press, kvpress.FinchPress) and press.rerotate_keys
    if moves or isinstance(press, (kvpress.KeyRerotationPress, kvpress.RestoreKVPress)):
        return int(cache.get_seq_length())
    return ids.shape[1]


def pack_layer(layer: Any, module: Any, tokens: int) -> LayerState:
    """What is left of a layer of kvpress's cache: keys [B, K, n, d], values [B, K, n, dv], without masked entries."""
    keep = torch.ones(layer.keys.shape[:3], dtype=torch.bool, device=layer.keys.device)
    masked, module.masked_key_indices = module.masked_key_indices, None
    if masked is not None:
        keep[tuple(masked)] = False
    positions = keep.nonzero()[:, 2] if keep.shape[2] == tokens else torch.full((int(keep.sum()),), UNKNOWN)
    part = Part(layer.keys[keep], layer.values[keep], keep.sum(-1).flatten().cpu().numpy())
    return LayerState([part], positions.int())
