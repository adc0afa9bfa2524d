"""kvpress's own pipeline over the samples of throughput.py and real_model.py, run by kvpress's Python: prints JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import kvpress
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def make_press(name: str, ratio: float, table: str) -> kvpress.BasePress:
    if name != "LUKVPress":
        return getattr(kvpress, name)(compression_ratio=ratio)
    press = kvpress.presses.lukv_press.LUKVPress(kvpress.KeyDiffPress(), compression_ratio=ratio)
    press._budget_curves = np.load(table, allow_pickle=False)  # in the place of its download: pruned shares
    return press


def pipeline(model: str, dtype: str, samples: str, table: str, share: str, *names: str) -> dict[str, Any]:
    """Of each press {"seconds": processor time of all samples, "answers": {id: text}}, or {"error": why not}."""
    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=getattr(torch, dtype), attn_implementation="sdpa", use_safetensors=True
    ).eval()
    ask = kvpress.KVPressTextGenerationPipeline(model=network, tokenizer=AutoTokenizer.from_pretrained(model))
    rows = [json.loads(line) for line in Path(samples).read_text().splitlines()]
    result: dict[str, Any] = {}
    for name in names:

        def answer(row: dict[str, Any], name: str = name) -> str:
            press = make_press(name, 1 - float(share), table)
            options = {key: row[key] for key in ("question", "answer_prefix", "max_new_tokens")}
            return str(ask(row["context"], press=press, **options)["answer"])

        try:
            answer(rows[0])  # warms up
            start = time.process_time()
            answers = {row["id"]: answer(row) for row in rows}
            result[name] = {"seconds": time.process_time() - start, "answers": answers}
        except ValueError as error:
            result[name] = {"error": " ".join(str(error).split())}
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(pipeline(*sys.argv[1:])))
