"""The one attention function, registered with transformers under one name for all models.

transformers calls it with the post-RoPE queries and with the keys and values that the cache's layer returned from
`update`. They carry a reference to that update and its layer, which does the rest. Layers that share keys and values
hand on the same tensors. Without a cache this is plain causal attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lukv.backend.architecture import check_architecture, check_wrapper
from lukv.backend.dense import attend_causally
from lukv.backend.layer import Update
from lukv.backend.options import ATTENTION
from lukv.backend.padding import find_range
from lukv.backend.parameters import AttentionParameters


def use_ragged_attention(model: PreTrainedModel) -> None:
    """Let the model's attention run through this backend. `model.set_attn_implementation("sdpa")` undoes it.

    Raises ValueError for a model that cannot be run, NotImplementedError for `output_attentions`.
    """
    check_wrapper(model)
    check_architecture(model.config)
    if model.config.get_text_config(decoder=True).output_attentions:
        raise NotImplementedError("output_attentions is not supported: attention weights are never materialised")
    model.set_attn_implementation(ATTENTION)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [B, H, n, d], key [B, K, n, d], value [B, K, n, dv] -> [B, n, H, dv] and no attention weights.

    attention_mask [B, 1, n, 1] bool: which columns are tokens (None: all), as `build_mask` makes it.
    """
    if kwargs.get("s_aux") is not None:
        raise NotImplementedError(
            f"{type(module).__name__} has attention sinks (s_aux), which this backend does not support"
        )
    if kwargs.get("output_attentions"):
        raise NotImplementedError("output_attentions is not supported: attention weights are never materialised")
    if dropout:
        raise NotImplementedError("dropout is not supported: call model.eval()")
    if not getattr(module, "is_causal", True):
        raise NotImplementedError(
            f"{type(module).__name__} attends to later tokens, too: only causal attention is supported"
        )
    if attention_mask is not None and (attention_mask.ndim != 4 or attention_mask.shape[1::2] != (1, 1)):
        raise NotImplementedError("only 2-D attention masks (1: token, 0: padding) are supported")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    update: Update | None = getattr(key, "ragged_update", None)
    if update is not None:
        same: bool = getattr(value, "ragged_update", None) is update
        if not same:
            raise NotImplementedError(
                f"{type(module).__name__} attends over other values than those it gave to the cache, which this "
                "backend does not support: it stores what the cache was given"
            )
        parameters = AttentionParameters(
            query.shape[1], scale, softcap, sliding_window, getattr(module, "o_proj", None)
        )
        layer = update.layer()
        assert layer is not None  # its cache is the model's argument as long as the forward runs
        out = layer.attend(update, query, key, value, attention_mask, parameters)
        return out.contiguous(), None  # as transformers' own functions: some models take a view of it
    if query.shape[2] != key.shape[2]:
        raise RuntimeError(
            "the model got another cache than a RaggedCache, or dropped the one it was given: prefill with "
            "compress() first (Phi-3's generate() drops a cache if the prompt is longer than its original context)"
        )
    out = query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    rows = (
        [(0, query.shape[2])] * len(out)
        if attention_mask is None
        else map(find_range, attention_mask.flatten(1).cpu().numpy())
    )
    for row, (a, b) in enumerate(rows):
        if a < b:
            q, k, v = (x[row, :, a:b] for x in (query, key, value))
            out[row, a:b] = attend_causally(q, k, v, scale, softcap, sliding_window).transpose(0, 1)
    return out, None


def build_mask(
    *args: Any,
    kv_length: int,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    q_length: int | None = None,
    cache_position: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    **kwargs: Any,
) -> Tensor | None:
    """[B, 1, n, 1] bool: which of the n new columns are tokens; None: all. Attention itself applies causality and
    windows. It has four dimensions because models that leave out columns (gemma4) cut the third.

    transformers 5.2 tells n by `cache_position`, later releases tell it by `q_length`.
    """
    if use_vmap or not allow_is_causal_skip:
        if "allow_is_bidirectional_skip" in kwargs:
            what = "asks for a mask that lets tokens see later ones, or those of an encoder"
        else:
            what = (
                "adds a pattern of its own to the causal mask (image blocks, packed sequences, what it learned to skip)"
            )
        raise NotImplementedError(f"the model {what}: only causal attention is supported")
    if attention_mask is None:
        return None
    if attention_mask.shape[1] != kv_offset + kv_length:
        raise ValueError(
            f"the attention mask has {attention_mask.shape[1]} columns, the cache and the input have "
            f"{kv_offset + kv_length}: it must cover every token so far, evicted ones too"
        )
    n = len(cache_position) if q_length is None else int(q_length)  # type: ignore[arg-type]
    new = attention_mask[:, -n:].to(torch.bool)
    return None if bool(new.all()) else new[:, None, :, None]


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, build_mask)
