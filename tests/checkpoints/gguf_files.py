"""Small GGUF files with random weights, as llama.cpp's converter writes them, and what they hold.

llama.cpp turns the rotary pairs of llama's queries and keys next to each other (`interleave`); of qwen2's it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

LAYERS, HEADS, KV_HEADS, WIDTH, INNER, POSITIONS = 2, 4, 2, 64, 96, 512
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot|>"]
MERGES = ["t h", "th e", "Ġ the", "i n", "Ġ i", "Ġ Ġ", "1 2"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NORMAL, CONTROL = 1, 3  # types of tokens


@dataclass(frozen=True)
class Written:
    path: Path
    plain: PreTrainedModel
    """The model of the same weights, loaded by hand in float32."""


def vocabulary() -> list[str]:
    """Byte-level BPE: the special tokens, an alphabet of printable bytes, what the merges make."""
    alphabet = [chr(i) for i in range(33, 127)] + ["Ġ", "Ċ"]
    return [*SPECIAL, *alphabet, *(merge.replace(" ", "") for merge in MERGES)]


def plain_model(kind: str) -> PreTrainedModel:
    torch.manual_seed(7)
    options = {
        "vocab_size": len(vocabulary()),
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "initializer_range": 0.2,
        "tie_word_embeddings": kind == "llama",
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**options)).eval()
    model = Qwen2ForCausalLM(Qwen2Config(**options)).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):  # zeros would hide whether they are read
            weight.data.normal_(0, 0.3)
    return model


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """From halves (x_i, x_{i + d/2}) to neighbours (x_{2i}, x_{2i+1})."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    *module, last = name.split(".")
    if module[:2] == ["model", "layers"]:
        return f"blk.{module[2]}.{NAMES['.'.join(module[3:])]}.{last}"
    return {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[
        ".".join(module)
    ] + f".{last}"


def write(
    path: Path, kind: str = "llama", quantization: str = "Q8_0", pre: str | None = "", **token_ids: int
) -> Written:
    """The file, and its dequantized tensors by hand in a plain model. pre: the pre-tokenizer that it names
    (None: it names none; by default its kind's). token_ids: eos=2, eot=3, ..."""
    quantity = GGMLQuantizationType[quantization]
    model = plain_model(kind)
    writer = GGUFWriter(path, kind)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    tokens = vocabulary()
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre or {"qwen2": "qwen2", "llama": "smollm"}[kind])
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in SPECIAL else NORMAL for token in tokens])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    for name, token in {"eos": 2, **token_ids}.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    writer.add_chat_template(TEMPLATE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            array = weight.numpy().astype(np.float32)
            heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2]) if kind == "llama" else None
            if array.ndim == 1:  # norms and biases stay as they are
                writer.add_tensor(gguf_name(name), array)
                continue
            blocks = gguf.quantize(interleave(array, heads) if heads else array, quantity)
            writer.add_tensor(gguf_name(name), blocks, raw_dtype=quantity)
            weight.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(array, quantity), quantity)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Written(path, model)
