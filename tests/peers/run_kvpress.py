"""kvpress's side, run by its own Python: `run_kvpress.py FOLDER`.

Saves tiny random-weight models under FOLDER, runs every case of peer_cases.py in float32 and writes, for each model and
length, MODEL-LENGTH.npz: ids, and for each method and ratio "METHOD/RATIO/kept" [layers, K, T] bool, ".../scores"
[layers, K, T], ".../logits" [V]. The budget tables for LUKVPress are in FOLDER (peer_cases.table_file). KVzip's results
are in MODEL-LENGTH-kvzip.npz, also by chat template: "HEAD/METHOD/RATIO/...", and "HEAD/ids".
"""

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import kvpress
import numpy as np
import torch
from kvpress.presses import duo_attention_press, kvzip_press
from peer_cases import (
    CASES,
    DUO,
    GEOMETRY,
    HEADS,
    KVZIP,
    KVZIP_LENGTHS,
    KVZIP_RATIOS,
    LENGTHS,
    MODELS,
    QUESTION,
    RATIOS,
    SEEN,
    SKETCH,
    TRAINED,
    encode_text,
    filters_file,
    table_file,
)
from transformers import AutoConfig, AutoModelForCausalLM, BatchEncoding, DynamicCache

RANDN = torch.randn
ROOT = Path(__file__).parents[2]


def save_model(path: Path, options: dict, seed: int) -> None:
    torch.manual_seed(seed)
    options = dict(options)
    config = AutoConfig.for_model(options.pop("model_type"), **GEOMETRY, **options)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, weight in model.named_parameters():
        if name.endswith("bias") or name.endswith("_norm.weight"):  # zeros and ones would hide what they do
            weight.data += 0.3 * torch.randn_like(weight)
    model.save_pretrained(path)


def make_qfilters(ratio: float, filters: Path):
    """Theirs are downloaded and have the opposite sign."""
    press = kvpress.QFilterPress(ratio)
    press.post_init_from_model = lambda model: None
    press.q_filters = -torch.from_numpy(np.load(filters, allow_pickle=False))
    return press


def make_finch(ratio: float):
    """Theirs reads the question's length off a token between context and question."""
    press = kvpress.FinchPress(ratio, rerotate_keys=False)
    press.window_size, press.delimiter_token_id = SEEN, -1
    return press


def make_press(method: str, ratio: float, table: Path, filters: Path):
    scorers = {
        "snapkv_kvpress": lambda: kvpress.SnapKVPress(ratio, window_size=64, kernel_size=5),
        "snapkv_16": lambda: kvpress.SnapKVPress(ratio, window_size=16, kernel_size=5),
        "snapkv_32": lambda: kvpress.SnapKVPress(ratio, window_size=32, kernel_size=7),
        "keydiff": lambda: kvpress.KeyDiffPress(ratio),
        "expected_attention": lambda: kvpress.ExpectedAttentionPress(ratio, epsilon=2e-2),
        "expected_attention_eps0": lambda: kvpress.ExpectedAttentionPress(ratio, epsilon=0.0),
        "streaming": lambda: kvpress.StreamingLLMPress(ratio),
        "tova_kvpress": lambda: kvpress.TOVAPress(ratio),
        "observed_attention": lambda: kvpress.ObservedAttentionPress(ratio),
        "lagkv": lambda: kvpress.LagKVPress(ratio),
        "lagkv_cross": lambda: kvpress.LagKVPress(ratio, cross_scoring=True),
        "cur_kvpress": lambda: kvpress.CURPress(ratio),
        "leverage": lambda: kvpress.LeverageScorePress(ratio, sketch_dimension=SKETCH),
        "non_causal": lambda: kvpress.NonCausalAttnPress(ratio),
        "compactor": lambda: kvpress.CompactorPress(ratio, sketch_dimension=SKETCH, blending=0.35),
        "finch": lambda: make_finch(ratio),
        "keynorm": lambda: kvpress.KnormPress(ratio),
        "qfilters": lambda: make_qfilters(ratio, filters),
        "pyramidkv": lambda: kvpress.PyramidKVPress(ratio, window_size=64, kernel_size=5),
    }
    wrapper, _, inner = method.partition("_")
    if wrapper == "adakv":
        return kvpress.AdaKVPress(scorers["snapkv_16" if inner == "snapkv" else inner]())
    if wrapper == "chunkkv":
        return kvpress.ChunkKVPress(scorers[inner](), chunk_length=20)
    if wrapper == "criticalkv":
        return kvpress.CriticalKVPress(scorers[inner]())
    if wrapper == "criticaladakv":
        return kvpress.CriticalAdaKVPress(scorers[inner](), alpha_safeguard=0.0)
    if wrapper == "lukv":
        name, window = ("snapkv_32", 32) if inner == "snapkv" else (inner, 1)
        press = kvpress.presses.lukv_press.LUKVPress(scorers[name](), compression_ratio=ratio, sink=4, window=window)
        press._budget_curves = np.load(table, allow_pickle=False)  # instead of its download
        return press
    return scorers[method]()


def draw_as_ours(layer: int, *shape: int, **options) -> torch.Tensor:
    """Their random projections [1, K, d, n] are drawn anew at every call: let them draw what we draw."""
    draws = [np.random.default_rng([0, layer, head]).standard_normal(shape[2:]) for head in range(shape[1])]
    return torch.from_numpy(np.stack(draws).astype(np.float32)).reshape(shape)


def record(press) -> tuple[list, list]:
    """Lists that fill with each layer's scores [K, T] and kept entries [K, T]."""
    scores, kept = [], []
    scorer = getattr(press, "press", press)
    score, compress = scorer.score, press.compress

    def recording_score(module, *args, **options):
        torch.randn = partial(draw_as_ours, module.layer_idx)
        scores.append(score(module, *args, **options))
        torch.randn = RANDN
        return scores[-1].clone()  # the wrappers write into it

    def recording_compress(module, hidden_states, keys, values, attentions, kwargs):
        module.masked_key_indices = None
        result = compress(module, hidden_states, keys, values, attentions, kwargs)
        mask = torch.ones(keys.shape[1:3], dtype=torch.bool)
        if module.masked_key_indices is not None:  # AdaKV and LU-KV keep all entries and mask some
            _, heads, positions = module.masked_key_indices
            mask[heads, positions] = False
        else:
            for head, (before, after) in enumerate(zip(keys[0].numpy(), result[0][0].numpy(), strict=True)):
                stays = {key.tobytes() for key in after}
                mask[head] = torch.tensor([key.tobytes() in stays for key in before])
        kept.append(mask)
        return result

    scorer.score, press.compress = recording_score, recording_compress
    return scores, kept


@torch.no_grad()
def run(model, ids: torch.Tensor, question: torch.Tensor, press) -> dict[str, np.ndarray]:
    scores, kept = record(press)
    logits = answer(model, ids, question, press)
    return {
        "scores": torch.stack(scores)[:, 0].numpy(),
        "kept": torch.stack(kept).numpy(),
        "logits": logits.numpy(),
    }


def answer(model, ids: torch.Tensor, question: torch.Tensor, press) -> torch.Tensor:
    """[V]: the logits after the question."""
    # it reads the attention weights, which only this implementation has
    model.set_attn_implementation("eager" if isinstance(press, kvpress.ObservedAttentionPress) else "sdpa")
    cache, tokens = DynamicCache(), ids.shape[1]
    with press(model):
        model.model(input_ids=ids, past_key_values=cache)
    # one token at a time: for its masked entries kvpress needs one key that all queries of a forward are opposed to;
    # queries in all directions have none ("Could not find fake keys")
    for i in range(question.shape[1]):
        logits = model(question[:, i : i + 1], past_key_values=cache, position_ids=torch.tensor([[tokens + i]])).logits[
            0, -1
        ]
    return logits


class Letters:
    """What KVzipPress asks of a tokenizer."""

    def __init__(self, head: str) -> None:
        self.before, self.after = HEADS[head]
        self.chat_template = head or None

    def encode(self, text: str, **options) -> torch.Tensor:
        return torch.tensor([encode_text(text)], dtype=torch.int64)

    def apply_chat_template(self, messages, **options) -> str:
        return self.before + messages[0]["content"] + self.after


@torch.no_grad()
def run_kvzip(model, ids: torch.Tensor, question: torch.Tensor, options: dict, ratio: float) -> dict[str, np.ndarray]:
    press = kvpress.KVzipPress(ratio, **options)
    finish, found = press.compress_post, {}

    def recording_finish(model):
        found["scores"] = press.score_val[:, 0].clone().numpy()
        finish(model)
        kept = torch.ones(found["scores"].shape, dtype=torch.bool)
        for layer, mask in zip(model.model.layers, kept, strict=True):
            _, heads, positions = layer.self_attn.masked_key_indices
            mask[heads, positions] = False
        found["kept"] = kept.numpy()

    press.compress_post = recording_finish
    logits = answer(model, ids, question, press)
    return {**found, "logits": logits.numpy()}


def run_kvzips(model, length: int) -> dict[str, np.ndarray]:
    arrays = {}
    for head, (before, _) in HEADS.items():
        kvzip_press.AutoTokenizer.from_pretrained = lambda *args, head=head, **kwargs: Letters(head)
        generator = torch.Generator().manual_seed(length)
        ids = torch.randint(0, model.config.vocab_size, (1, length + QUESTION), generator=generator)
        ids[0, : len(before)] = torch.tensor(encode_text(before), dtype=torch.int64)
        arrays[f"{head}/ids"] = ids[0].numpy()
        for method, options in KVZIP.items():
            for ratio in KVZIP_RATIOS:
                result = run_kvzip(model, ids[:, :length], ids[:, length:], options, ratio)
                arrays |= {f"{head}/{method}/{ratio}/{key}": value for key, value in result.items()}
    return arrays


ON_THE_FLY = duo_attention_press.duo_attention_on_the_fly


@torch.no_grad()
def run_duo_attention(model, ids: torch.Tensor, question: torch.Tensor, ratio: float) -> dict[str, np.ndarray]:
    """Their patterns are read off 50 book chapters: here it is one, the prompt."""
    press, found = kvpress.DuoAttentionPress(ratio, on_the_fly_scoring=True), {}
    begin, compress, kept = press.post_init_from_model, press.compress, []

    def find_heads(model):
        duo_attention_press.cache.clear()
        found["scores"] = ON_THE_FLY(model, num_samples=1)
        return found["scores"]

    def begin_small(model):
        begin(model)
        press.sink_size, press.recent_size = DUO["sink"], DUO["recent"]

    def recording_compress(module, hidden_states, keys, values, attentions, kwargs):
        result = compress(module, hidden_states, keys, values, attentions, kwargs)
        mask = torch.ones(keys.shape[1:3], dtype=torch.bool)
        _, heads, positions = module.masked_key_indices
        mask[heads, positions] = False
        kept.append(mask)
        return result

    texts = SimpleNamespace(to_pandas=lambda: SimpleNamespace(sample=lambda *a, **k: {"chapter": Chapters(["one"])}))
    duo_attention_press.load_dataset = lambda *a, **k: texts
    duo_attention_press.AutoTokenizer.from_pretrained = lambda *a, **k: (
        lambda text, **k: BatchEncoding({"input_ids": ids})
    )
    duo_attention_press.duo_attention_on_the_fly = find_heads
    press.post_init_from_model, press.compress = begin_small, recording_compress
    logits = answer(model, ids, question, press)
    return {**found, "kept": torch.stack(kept).numpy(), "logits": logits.numpy()}


class Chapters(list):
    def tolist(self) -> list:
        return list(self)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for seed, (name, methods) in enumerate(CASES.items()):
        path = ROOT / "models" / "tiny" if name == TRAINED else folder / name
        if name in MODELS:
            save_model(path, MODELS[name], seed)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()
        for length in LENGTHS:
            generator = torch.Generator().manual_seed(length)
            ids = torch.randint(0, model.config.vocab_size, (1, length + QUESTION), generator=generator)
            arrays = {"ids": ids[0].numpy()}
            for method in methods:
                for ratio in RATIOS:
                    press = make_press(method, ratio, folder / table_file(name, method), folder / filters_file(name))
                    result = run(model, ids[:, :length], ids[:, length:], press)
                    arrays |= {f"{method}/{ratio}/{key}": value for key, value in result.items()}
            for ratio in RATIOS if name in MODELS else ():
                result = run_duo_attention(model, ids[:, :length], ids[:, length:], ratio)
                arrays |= {f"duo_attention/{ratio}/{key}": value for key, value in result.items()}
            np.savez_compressed(folder / f"{name}-{length}.npz", **arrays)
        for length in KVZIP_LENGTHS if name in MODELS else ():
            np.savez_compressed(folder / f"{name}-{length}-kvzip.npz", **run_kvzips(model, length))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
