"""Copy a checkpoint so that every query head has a KV head of its own: the same function with G times the cache.

    python -m models.expand models/tiny FOLDER
    python run.py model=hf model.path=FOLDER method=snapkv budget=0.05

The original SnapKV repository does this to a grouped-query model before it compresses: it repeats the KV heads, and
each query head then keeps tokens of its own. A budget b of this checkpoint is G*b of the grouped model's cache.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from pathlib import Path

from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from lukv.model import load


def expand(model: PreTrainedModel) -> PreTrainedModel:
    """A model with H KV heads that computes what `model` with K computes. Raises ValueError for a model without
    separate key and value projections (Phi-3's are fused)."""
    config = deepcopy(model.config)
    text = config.get_text_config(decoder=True)
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    text.num_key_value_heads = heads
    weights = model.state_dict()
    projections = [name for name in weights if name.split(".")[-2] in ("k_proj", "v_proj")]
    if not projections:
        raise ValueError(f"{config.model_type} has no k_proj and v_proj to repeat")
    for name in projections:
        weights[name] = repeat_heads(weights[name], kv_heads, heads // kv_heads)
    twin = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    twin.load_state_dict(weights)
    twin.generation_config = deepcopy(model.generation_config)
    return twin.eval()


def repeat_heads(weight: Tensor, kv_heads: int, times: int) -> Tensor:
    """[K * times * d, ...] from [K * d, ...]: each head's rows `times` times in a row, in the order of query heads."""
    return weight.unflatten(0, (kv_heads, -1)).repeat_interleave(times, 0).flatten(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder that save_pretrained wrote, or a hub id")
    parser.add_argument("folder", type=Path, help="where the copy goes; must not exist")
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} exists already")
    loaded = load(options.model, device="cpu")
    heads = loaded.config.num_attention_heads
    expand(loaded.model).save_pretrained(options.folder)
    loaded.tokenizer.save_pretrained(options.folder)
    print(f"{options.folder}: {heads} KV heads a layer instead of {loaded.kv_heads}")


if __name__ == "__main__":
    main()
