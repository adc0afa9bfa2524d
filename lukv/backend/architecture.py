"""Can this backend run a model? What its config says before any weights are read, and what a model is wrapped in."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from lukv.backend.config import find_windows, read_field


def check_architecture(config: PreTrainedConfig) -> None:
    """Raise ValueError, in a line that names the reason, for a model that this backend cannot run."""
    text = config.get_text_config(decoder=True)
    network = find_network(config)
    find_windows(config)
    if text.is_encoder_decoder:
        raise ValueError(
            f"{text.model_type} is an encoder-decoder model: its layers attend to an encoder's output, too, and only "
            "decoder-only models are supported"
        )
    if read_field(text, "cross_attention_layers"):
        raise ValueError(
            f"{text.model_type} has cross-attention layers, whose keys are not those of the text: they cannot be "
            "evicted with it"
        )
    if read_field(text, "kv_lora_rank"):
        raise ValueError(
            f"{text.model_type} has multi-head latent attention (kv_lora_rank): its cache holds one latent vector a "
            "token for all heads, no keys and values of each head that could be evicted"
        )
    if network is not None and network._is_stateful:
        raise ValueError(
            f"{text.model_type} is recurrent: it keeps a state of fixed size, which this backend cannot hold or evict"
        )
    if network is not None and not network._can_set_attn_implementation():
        raise ValueError(
            f"{text.model_type} computes attention in code of its own ({network.__name__}), not through transformers' "
            "AttentionInterface, which this backend needs"
        )


def find_network(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class that holds the attention: that of the text model, where a model has one for images or sound beside it.
    None if transformers knows no causal language model of this config."""
    text = config.get_text_config(decoder=True)
    for kind in (type(text), type(config)):
        network: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(kind, None)
        if network is not None:
            return network  # type: ignore[no-any-return]
    return None


def check_wrapper(model: Any) -> None:
    """Raise ValueError for a model that torch.compile or PEFT's prompt learning has changed."""
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise ValueError(
            "the model is compiled (torch.compile): every new length of a head would be compiled anew, so this backend "
            "runs models only as they are: give the one that was compiled"
        )
    for name, adapter in (getattr(model, "peft_config", None) or {}).items():
        if getattr(adapter, "is_prompt_learning", False):
            raise ValueError(
                f"the model has the PEFT adapter {name}, which puts learned tokens or keys before the prompt (prompt, "
                "prefix or P-tuning): they cannot be told from the context. Adapters that change weights (LoRA) work"
            )


def unwrap(model: Any) -> PreTrainedModel:
    """The transformers model in PEFT's wrapper or in a lukv.model.LoadedModel. Raises ValueError for a wrapper that the
    backend cannot look through, and for what is no transformers model."""
    check_wrapper(model)
    if isinstance(model, PreTrainedModel):
        return model
    inner = getattr(model, "model", None)
    if not isinstance(inner, PreTrainedModel):
        raise ValueError(f"a transformers model is expected, this is a {type(model).__name__}")
    check_wrapper(inner)
    return inner
