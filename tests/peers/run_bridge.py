"""The bridge and kvpress's own decoding side by side, run by kvpress's Python: `run_bridge.py OUT`.

OUT becomes JSON. "presses": the presses that kvpress exports. Of each case in bridge_cases.WORK: "theirs" and "ours":
the tokens decoded; "logit": the largest difference of a logit, relative to the largest logit; "their_bytes" and
"our_bytes" of the cache after the prompt; "entries": bytes of what kvpress did not mask; "unknown": share of positions
that are not known; "positions": are the known ones those that kvpress did not mask?; "attention": what the model runs
on afterwards. Of each in REFUSED: the message.
"""

import copy
import json
import sys
from pathlib import Path

import kvpress
import numpy as np
import torch
from bridge_cases import CONTEXT, QUESTION, RATIO, REFUSED, TOKENS, WORK
from kvpress.presses.expected_attention_with_stats import ExpectedAttentionStats
from kvpress.presses.fastkvzip_press import FastKVzipGate
from kvpress.presses.kvzap_press import KVzapConfig, KVzapModel
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from lukv.backend.generate import append
from lukv.bridges.kvpress import UNKNOWN, compress, count_tokens

TINY = Path(__file__).parents[2] / "models" / "tiny"


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


class Duo(kvpress.DuoAttentionPress):
    """With a pattern of ours in the place of its download."""

    @staticmethod
    def load_attention_pattern(model):
        heads = (model.config.num_hidden_layers, model.config.num_key_value_heads)
        return 8, 32, np.random.default_rng(0).random(heads)


class QFilter(kvpress.QFilterPress):
    """With filters of ours in the place of their download."""

    @staticmethod
    def load_q_filters(name):
        return seeded(4, 4, 32)


def made_for(press, model):
    """The press with made-up weights in the place of those that are downloaded for some models."""
    config = model.config
    layers, heads, width = config.num_hidden_layers, config.num_key_value_heads, config.hidden_size
    if isinstance(press, kvpress.LUKVPress):
        shares = (
            np.linspace(1.6, 0.4, layers * heads).reshape(layers, heads) * np.linspace(0.01, 0.99, 99)[:, None, None]
        )
        press._budget_curves = np.minimum(shares, 1)
    elif isinstance(press, kvpress.ExpectedAttentionStatsPress):
        queries = config.num_attention_heads
        stats = ExpectedAttentionStats(layers, queries, 32, "none", "none", 1, 1, 4)
        press.mu, half = seeded(layers, queries, 32), seeded(layers, queries, 32, 32) / 6
        press.cov = half @ half.transpose(-1, -2)
        assert press.mu.shape == stats.query_mean.shape
    elif isinstance(press, kvpress.FastKVzipPress):
        torch.manual_seed(0)
        press.gates = [FastKVzipGate(i, width, heads, 2, torch.float32, sink=16) for i in range(layers)]
    elif isinstance(press, kvpress.KVzapPress):
        torch.manual_seed(0)
        press.kvzap_model_name = f"nvidia/KVzap-{press.model_type}-{config.name_or_path.split('/')[-1]}"
        press.kvzap_model = KVzapModel(KVzapConfig(input_dim=width, output_dim=heads, n_modules=layers))
    elif isinstance(press, kvpress.RestoreKVPress):
        press.restore_embeddings = seeded(3, width) / 10
        press.restore_model_name = f"higokri/RestoreKV-{config.name_or_path.split('/')[-1]}"
        torch.manual_seed(0)
        lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
        model.add_adapter(lora, press.adapter_name)
        model.disable_adapters()
    return press


def make_press(name: str, model):
    k, r = kvpress, RATIO
    presses = {
        "adakv_snapkv": lambda: k.AdaKVPress(k.SnapKVPress(r)),
        "adakv_compactor": lambda: k.AdaKVPress(k.CompactorPress(r)),
        "block_keydiff": lambda: k.BlockPress(k.KeyDiffPress(r), block_size=64),
        "cap": lambda: k.CapPress(r),
        "chunk_knorm": lambda: k.ChunkPress(k.KnormPress(r), chunk_length=100),
        "chunkkv_snapkv": lambda: k.ChunkKVPress(k.SnapKVPress(r)),
        "compactor": lambda: k.CompactorPress(r),
        "composed_snapkv_think": lambda: k.ComposedPress([k.SnapKVPress(r), k.ThinKPress(0.3)]),
        "composed_critical_think": lambda: k.ComposedPress([k.CriticalAdaKVPress(k.SnapKVPress(r)), k.ThinKPress(0.3)]),
        "critical_adakv": lambda: k.CriticalAdaKVPress(k.SnapKVPress(r)),
        "critical_knorm": lambda: k.CriticalKVPress(k.KnormPress(r)),
        "cur": lambda: k.CURPress(r),
        "dms_knorm": lambda: k.DMSPress(k.KnormPress(), threshold=-7.0, sliding_window_size=32),
        "duo_attention": lambda: Duo(r),
        "entropy_gated_chunkkv": lambda: k.EntropyGatedChunkKVPress(k.SnapKVPress(r)),
        "expected_attention": lambda: k.ExpectedAttentionPress(r),
        "expected_attention_stats": lambda: k.ExpectedAttentionStatsPress(r),
        "fastkvzip": lambda: k.FastKVzipPress(r),
        "finch": lambda: k.FinchPress(r),
        "finch_in_place": lambda: k.FinchPress(r, rerotate_keys=False),
        "key_rerotation": lambda: k.KeyRerotationPress(k.KnormPress(r)),
        "keydiff": lambda: k.KeyDiffPress(r),
        "knorm": lambda: k.KnormPress(r),
        "kvcompose": lambda: k.KVComposePress(compression_ratio=r),
        "kvcompose_unstructured": lambda: k.KVComposePress(structured=False, compression_ratio=r),
        "kvgrad": lambda: k.KVgradPress(r),
        "kvzap": lambda: k.KVzapPress(r),
        "kvzip": lambda: k.KVzipPress(r),
        "kvzip_plus": lambda: k.KVzipPress(r, kvzip_plus_normalization=True),
        "lagkv": lambda: k.LagKVPress(r, lag_size=32),
        "leverage": lambda: k.LeverageScorePress(r),
        "lukv": lambda: k.LUKVPress(k.KeyDiffPress(), compression_ratio=r),
        "merging_knorm": lambda: k.MergingPress(k.KnormPress(r)),
        "non_causal": lambda: k.NonCausalAttnPress(r),
        "observed_attention": lambda: k.ObservedAttentionPress(r),
        "per_layer_knorm": lambda: k.PerLayerCompressionPress(k.KnormPress(), [0.2, 0.4, 0.6, 0.8]),
        "pyramidkv": lambda: k.PyramidKVPress(r),
        "qfilter": lambda: QFilter(r),
        "random": lambda: k.RandomPress(r, seed=1),
        "restorekv": lambda: k.RestoreKVPress(r),
        "simlayerkv": lambda: k.SimLayerKVPress(lazy_threshold=0.5, n_recent=64),
        "snapkv": lambda: k.SnapKVPress(r),
        "streaming_llm": lambda: k.StreamingLLMPress(r),
        "think": lambda: k.ThinKPress(0.5),
        "tova": lambda: k.TOVAPress(r),
        "decoding": lambda: k.DecodingPress(k.KnormPress()),
        "decoding_by_ratio": lambda: k.CompressionRatioDecodingPress(k.KnormPress()),
        "cam": lambda: k.CAMPress(k.KnormPress()),
        "dms_decoding": lambda: k.DMSPress(k.KnormPress(), threshold=-7.0, decoding=True),
        "composed_decoding": lambda: k.ComposedPress([k.KnormPress(r), k.DecodingPress(k.KnormPress())]),
        "prefill_decoding": lambda: k.PrefillDecodingPress(k.KnormPress(r), k.DecodingPress(k.KnormPress())),
        "no_press": lambda: None,
    }
    return made_for(presses[name](), model)


def decode(step, question: list[int]) -> tuple[list[int], torch.Tensor]:
    """Tokens and logits [steps, V] of greedy decoding. step(id, i) -> logits of the i-th token after the context."""
    tokens, logits = [], []
    for i, token in enumerate(question):
        last = step(token, i)
    for i in range(TOKENS):
        logits.append(last)
        tokens.append(int(last.argmax()))
        last = step(tokens[-1], len(question) + i)
    return tokens, torch.stack(logits)


def run_theirs(model, context, question, press, prefill):
    """kvpress's own decoding, one token at a time (see run_kvpress.py), and its cache after the prompt."""
    model.set_attn_implementation(prefill)
    modules = [layer.self_attn for layer in model.model.layers]
    for module in modules:
        module.masked_key_indices = None
    cache = DynamicCache()
    torch.manual_seed(7)  # some presses draw random numbers
    with press(model):
        model.model(input_ids=context, past_key_values=cache)
    masks = [torch.ones(layer.keys.shape[:3], dtype=torch.bool) for layer in cache.layers]
    for mask, module in zip(masks, modules, strict=True):
        if module.masked_key_indices is not None:
            mask[tuple(module.masked_key_indices)] = False
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    first = count_tokens(press, context, cache)
    model.set_attn_implementation("sdpa")

    def step(token, i):
        positions = torch.tensor([[first + i]])
        return model(torch.tensor([[token]]), past_key_values=cache, position_ids=positions).logits[0, -1]

    return *decode(step, question), size, masks


def unmasked(mask) -> list[list[int]]:
    """The positions that a mask [K, T] leaves each head."""
    return [head.nonzero()[:, 0].tolist() for head in mask]


def compare(name, model, context, question) -> dict:
    press = make_press(name, model)
    prefill = "eager" if isinstance(press, kvpress.ObservedAttentionPress) else "sdpa"
    theirs, their_logits, their_bytes, masks = run_theirs(model, context, question, press, prefill)
    torch.manual_seed(7)
    cache = compress(model, context, press, prefill=prefill)
    positions = [cache.find_positions(i, 0) for i in range(len(masks))]
    known = [(mask[0], heads) for mask, heads in zip(masks, positions, strict=True) if (heads[0] != UNKNOWN).all()]
    entry = sum(part.shape[1] * 4 for part in cache.state().layers[0].parts[0][:2])
    result = {
        "their_bytes": their_bytes,
        "our_bytes": cache.nbytes,
        "entries": entry * int(sum(mask.sum() for mask in masks)),
        "unknown": 1 - len(known) / len(masks),
        "positions": all(unmasked(mask) == [head.tolist() for head in heads] for mask, heads in known),
        "attention": model.config._attn_implementation,
    }
    ours, our_logits = decode(lambda token, i: append(model, cache, [[token]])[0], question)
    result["logit"] = float((our_logits - their_logits).abs().max() / their_logits.abs().max())
    cache.rollback()
    return result | {"theirs": theirs, "ours": ours, "our_bytes_again": cache.nbytes}


@torch.no_grad()
def main(out: Path, *only: str) -> None:
    torch.set_num_threads(1)
    whole = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, attn_implementation="sdpa").eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ids = torch.randint(5, whole.config.vocab_size, (1, CONTEXT + QUESTION), generator=torch.Generator().manual_seed(1))
    context, question = ids[:, :CONTEXT], ids[0, CONTEXT:].tolist()
    presses = [name for name in kvpress.__all__ if name.endswith("Press")]
    results: dict = {"presses": presses, "work": {}, "refused": {}}
    for name in only or WORK:
        model = copy.deepcopy(whole)  # presses leave things in a model
        prompt = context
        if name.startswith("finch"):  # its prompt has a delimiter before the question
            press = kvpress.FinchPress()
            press.update_model_and_tokenizer(model, copy.deepcopy(tokenizer))
            kvpress.FinchPress.delimiter_token_id = press.delimiter_token_id
            prompt = torch.cat([context[:, :-20], torch.tensor([[press.delimiter_token_id]]), context[:, -20:]], dim=1)
        try:
            results["work"][name] = compare(name, model, prompt, question)
        except Exception as error:  # the test shows it
            results["work"][name] = {"error": f"{type(error).__name__}: {error}"}
    for name in REFUSED:
        try:
            compress(whole, context, make_press(name, whole))
        except ValueError as error:
            results["refused"][name] = str(error)
    out.write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
