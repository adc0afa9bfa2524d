"""Use a model that somebody else has loaded, and give it back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from lukv.backend.attention import use_ragged_attention
from lukv.backend.options import ATTENTION
from lukv.backend.self_check import check_model

IN_USE = "_lukv_in_use"  # an attribute of the model as long as it is lent


@contextmanager
def lend_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's attention is the backend's. Afterwards, also after an exception, it is as it was.

    Before anything else a few tokens show that the model answers the same as with its own attention (self_check.py). A
    model whose attention was ours already, as `lukv.model.load` leaves it, was checked then. Raises ValueError for a
    model that the backend cannot run, RuntimeError for one that is lent already, by this thread or another.
    """
    if vars(model).setdefault(IN_USE, lease := object()) is not lease:
        raise RuntimeError(
            "the model is in use by lukv already: one `with lukv.eviction(...)` or call at a time, none inside another"
        )
    try:
        if model.config.get_text_config(decoder=True)._attn_implementation == ATTENTION:
            yield
            return
        if model.device.type == "meta":
            raise ValueError("the model's first weights are on disk: give the embedding a device in device_map")
        if model.training:
            raise ValueError("the model is in training mode, where it drops activations at random: call model.eval()")
        before = read_implementations(model.config)
        try:
            use_ragged_attention(model)
            check_model(model)
            yield
        finally:
            model.set_attn_implementation(before)
    finally:
        delattr(model, IN_USE)


def read_implementations(config: PreTrainedConfig) -> dict[str, Any]:
    """The attention of a model ("") and of each model inside it, as `set_attn_implementation` takes them."""
    parts = {key: getattr(config, key, None) for key in config.sub_configs}
    inner = {key: part._attn_implementation for key, part in parts.items() if part is not None}
    return {"": config._attn_implementation, **inner}
