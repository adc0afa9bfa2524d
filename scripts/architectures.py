"""Every causal language model of the installed transformers, small and with random weights: does the backend run it?

    python -m scripts.architectures                # write docs/data/architectures.csv and docs/architectures.md
    python -m scripts.architectures llama bloom    # print these rows, write nothing

Each type goes the way of `lukv.model.load`: what its config says, then a model of float64, then the self-check. What is
left compresses a prompt, keeps everything, appends a question and some tokens, and is compared with dense attention and
transformers' own cache. Exit code 1 if a type is neither right nor refused.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import eager_mask
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lukv.backend.architecture import check_architecture
from lukv.backend.attention import use_ragged_attention
from lukv.backend.config import count_readers, find_windows
from lukv.backend.generate import append, compress
from lukv.backend.geometry import count_kv_heads
from lukv.backend.rope_check import find_mismatched_layers
from lukv.backend.self_check import check_model

ROOT = Path(__file__).parents[1]
DATA, PAGE = ROOT / "docs/data/architectures.csv", ROOT / "docs/architectures.md"

SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
    "is_decoder": True,
}
"""Given to every config."""

SIZES = {
    1: "n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace num_dense_layers encoder_layers "
    "moe_num_shared_experts num_mtp_layers num_encoder_layers num_mem_blocks o_groups hc_mult num_codebooks",
    2: "num_experts_per_tok moe_k moe_topk index_n_heads swa_num_key_value_heads",
    4: "n_routed_experts num_experts num_local_experts moe_num_experts decoder_layers num_decoder_layers num_layers "
    "n_layers num_heads encoder_attention_heads decoder_attention_heads num_encoder_attention_heads "
    "num_decoder_attention_heads swa_num_attention_heads linear_num_key_heads linear_num_value_heads linear_num_heads",
    8: "qk_rope_head_dim qk_nope_head_dim hidden_size_per_layer_input sliding_window index_topk",
    14: "patch_size",
    16: "v_head_dim index_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim swa_head_dim rotary_dim "
    "attention_head_size mamba_head_dim adapter_rank",
    28: "image_size",
    32: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size dense_intermediate_size dim_head "
    "shared_intermediate_size shared_experts_intermediate_size moe_shared_expert_intermediate_size q_lora_rank "
    "kv_lora_rank o_lora_rank",
    64: "d_model backbone_hidden_size router_hidden_size feed_forward_size",
    96: "ffn_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size dim_ff d_inner",
    128: "vocab_size_per_layer_input unpadded_vocab_size ngram_vocab_size_base shape_vocab_size "
    "pronunciation_vocab_size",
}
"""Given to configs that have a field of this name."""

WHERE_KNOWN = {name: size for size, names in SIZES.items() for name in names.split()}

SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LATENT = {"num_key_value_heads": 4, "head_dim": 8}
FURTHER: dict[str, dict[str, Any]] = {
    "gemma3_text gemma4_text gemma4_unified_text mellum flint kolibri1 beam": SLIDING,
    "gemma3n_text": {**SLIDING, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.0] * 4},
    "cohere_compass_text": {**SLIDING, "rope_parameters": dict.fromkeys(SLIDING["layer_types"], ROPE)},
    "deepseek_v3 minicpm3 axk1 longcat_flash youtu glm4_moe_lite": LATENT,
    "dots3_note_text": {**LATENT, "per_layer_config": {}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "moshi moshi_depth mimi": {"sliding_window": 256},
    "xlnet": {"d_head": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}
"""Model types -> what else their config needs."""

MORE = {kind: options for kinds, options in FURTHER.items() for kind in kinds.split()}

LARGEST = 20_000_000
"""Parameters of a small model; more are a config that was not made small."""

PROMPT, QUESTION, DECODED = 13, 7, 4
CLOSE = 1e-6
"""Largest relative error of the logits that counts as exact: the routers of some models compute in float32."""

DENSE = "dense_float64"


@dataclass(frozen=True)
class Row:
    """type: transformers' model_type. verdict: one of VERDICTS. by: what refuses it, its `config` before weights are
    read, or the self-`check` of a loaded model. why: in a line. difference: of the logits, relative. version: of
    transformers."""

    type: str
    verdict: str
    by: str = ""
    why: str = ""
    difference: str = ""
    version: str = transformers.__version__


VERDICTS = {
    "exact": "the logits are those of dense attention",
    "exact, but": "the same, with a limit",
    "refused": "one line says why, exit code 2",
    "not tried": "no small model could be built",
    "WRONG": "neither right nor refused: a fault",
}
BY = {"config": "by their config, before weights are read", "check": "by the self-check, after they are loaded"}


PAGE_TEXT = """# Architectures

Every causal language model of transformers {version}, {types} types, each as a small model with random weights in
float64. `python -m scripts.architectures` tries them and writes this page; `make test-slow` tries them again.

| verdict | types | |
|---|--:|---|
{counts}

Of those refused, {config}, {check} ([backend.md](backend.md), Limits).

Each compresses a prompt of {prompt} tokens and keeps everything, then come a question of {question} and {decoded}
single tokens. *difference*: the largest relative error of their logits against dense attention in float64 over
transformers' own cache. Where it is near 1e-7, the model computes its routers in float32.

| type | verdict | by | why | difference |
|---|---|---|---|--:|
{table}
"""


def list_types() -> list[str]:
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def shrink(kind: type[PreTrainedConfig]) -> dict[str, Any]:
    """The options that make a small config of this class."""
    known = {field.name for field in fields(kind)}
    options = SMALL | {name: value for name, value in WHERE_KNOWN.items() if name in known}
    if "layer_types" not in known:  # one window for all layers leaves nothing to evict; most checkpoints have none
        options["sliding_window"] = None
    options |= MORE.get(kind.model_type, {})
    return {name: value for name, value in options.items() if not isinstance(getattr(kind, name, None), property)}


def make_config(kind: str) -> PreTrainedConfig:
    """A small config of this type, its parts (text, images, sound) small, too."""
    whole = CONFIG_MAPPING[kind]
    if not whole.sub_configs:
        return AutoConfig.for_model(kind, **shrink(whole))
    usual = whole()
    parts = {name: type(getattr(usual, name)) for name in whole.sub_configs if getattr(usual, name, None) is not None}
    options = {
        name: {"model_type": part.model_type, **shrink(part)}
        for name, part in parts.items()
        if part.model_type in CONFIG_MAPPING
        and CONFIG_MAPPING[part.model_type] is part  # dbrx and mpt keep their attention's options in one
    }
    own = {} if "text_config" in parts else shrink(whole)
    return AutoConfig.for_model(kind, **own, **options)


def make_model(config: PreTrainedConfig) -> PreTrainedModel:
    """float64 and random. Raises ValueError if it is not small."""
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}  # others have no float64
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"its small config has {size} parameters")
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float64, **options)
    return model.double().eval()


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' eager attention in float64 throughout: theirs computes the softmax in float32. query [B, H, n, d],
    key [B, K, T, d], value [B, K, T, dv], mask [B, 1, n, T] added to the logits -> [B, n, H, dv]."""
    group = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = query @ key.repeat_interleave(group, 1).transpose(2, 3) * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    weights = (logits if attention_mask is None else logits + attention_mask).softmax(-1)
    return (weights @ value.repeat_interleave(group, 1)).transpose(1, 2).contiguous(), None


AttentionInterface.register(DENSE, attend)
AttentionMaskInterface.register(DENSE, eager_mask)


@torch.no_grad()
def run_stock(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits [tokens, vocabulary] with transformers' own cache: the prompt and the question, then token by token."""
    model.set_attn_implementation(DENSE)
    first = PROMPT + QUESTION
    out = model(input_ids=ids[:, :first], use_cache=True)
    logits = [out.logits[:, -1]]
    for at in range(first, first + DECODED):
        out = model(input_ids=ids[:, at : at + 1], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[:, -1])
    return torch.cat(logits)


def run_ours(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The same through the backend, which keeps everything."""
    use_ragged_attention(model)
    first = PROMPT + QUESTION
    cache = compress(model, ids[:, :PROMPT])
    logits = [append(model, cache, ids[:, PROMPT:first])]
    logits += [append(model, cache, ids[:, at : at + 1]) for at in range(first, first + DECODED)]
    return torch.cat(logits)


def try_type(kind: str) -> Row:
    """What the backend makes of this type."""
    try:
        config = make_config(kind)
    except Exception as error:  # each config refuses what it does not know in its own way
        return Row(kind, "not tried", why=f"no small config: {say(error)}")
    try:
        check_architecture(config)
    except ValueError as error:
        return Row(kind, "refused", "config", say(error))
    ids = torch.randint(5, 100, (1, PROMPT + QUESTION + DECODED), generator=torch.Generator().manual_seed(0))
    try:
        model = make_model(config)
        model(input_ids=ids)
    except Exception as error:  # a small model that transformers itself cannot build or run says nothing
        return Row(kind, "not tried", why=f"transformers cannot run a small one: {say(error)}")
    try:
        use_ragged_attention(model)
        check_model(model)
    except ValueError as error:
        return Row(kind, "refused", "check", say(error))
    stock = run_stock(model, ids)
    try:
        difference = float(((run_ours(model, ids) - stock).norm(dim=-1) / stock.norm(dim=-1)).max())
        but = "; ".join(find_limits(model))
    except (ValueError, RuntimeError, TypeError, AttributeError, IndexError) as error:
        return Row(kind, "WRONG", why=say(error))
    right = "exact, but" if but else "exact"
    return Row(kind, right if difference <= CLOSE else "WRONG", why=but, difference=f"{difference:.0e}")


def find_limits(model: PreTrainedModel) -> list[str]:
    """What a model that is exact cannot do, each in a few words."""
    windows = find_windows(model.config)
    limits = []
    if len(windows) > windows.count(None):
        limits.append("layers with a sliding window are not evicted")
    if count_readers(model.config):
        limits.append("layers that read the keys of earlier ones rule out every= and stream()")
    if find_mismatched_layers(model):
        limits.append("no scorer that undoes the rotation of keys")
    try:
        count_kv_heads(model)
    except ValueError:
        limits.append("layers with different numbers of KV heads: no budget tables")
    return limits


def say(error: Exception) -> str:
    """An error in a line."""
    return f"{' '.join(str(error).split())[:240] or type(error).__name__}"


def make_data(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    out = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    out.writeheader()
    out.writerows(asdict(row) for row in rows)
    return text.getvalue()


def read_data() -> list[Row]:
    with DATA.open(encoding="utf-8", newline="") as file:
        return [Row(**row) for row in csv.DictReader(file)]


def make_page(rows: Sequence[Row]) -> str:
    """docs/architectures.md."""
    counts = Counter(row.verdict for row in rows)
    known = [f"| {name} | {counts[name]} | {what} |" for name, what in VERDICTS.items() if counts[name]]
    by = Counter(row.by for row in rows)
    table = [
        f"| {row.type} | {row.verdict} | {row.by} | {row.why.replace('|', ' ')} | {row.difference} |" for row in rows
    ]
    return PAGE_TEXT.format(
        version=rows[0].version,
        types=len(rows),
        counts="\n".join(known),
        config=f"{by['config']} are refused {BY['config']}",
        check=f"{by['check']} {BY['check']}",
        prompt=PROMPT,
        question=QUESTION,
        decoded=DECODED,
        table="\n".join(table),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types to print instead of writing all")
    types = parser.parse_args().types
    rows = []
    for kind in types or list_types():
        rows.append(try_type(kind))
        print(" | ".join(asdict(rows[-1]).values()), flush=True)
    if not types:
        DATA.write_text(make_data(rows), encoding="utf-8")
        PAGE.write_text(make_page(rows), encoding="utf-8")
    return int(any(row.verdict == "WRONG" for row in rows))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    sys.exit(main())
