"""kvpress's side of test_smollm2.py, run by its own Python: `run_smollm2.py MODEL SAMPLES OUT`.

SAMPLES is JSON: [{"context": ids, "question": ids}]. OUT becomes {method: [ids that were answered]}.
"""

import json
import sys
from pathlib import Path

import kvpress
import torch
from transformers import AutoModelForCausalLM, DynamicCache

PRESSES = {
    "keydiff": lambda ratio: kvpress.KeyDiffPress(ratio),
    "snapkv": lambda ratio: kvpress.SnapKVPress(ratio, window_size=64, kernel_size=5),
}
RATIO, TOKENS = 0.8, 12  # the share removed; tokens of an answer


@torch.no_grad()
def answer(model, context: list[int], question: list[int], press) -> list[int]:
    cache = DynamicCache()
    with press(model):
        model.model(input_ids=torch.tensor([context]), past_key_values=cache)
    ids, position, tokens = question, len(context), []
    for _ in range(TOKENS):
        positions = torch.arange(position, position + len(ids))[None]
        logits = model(torch.tensor([ids]), past_key_values=cache, position_ids=positions).logits[0, -1]
        position += len(ids)
        ids = [int(logits.argmax())]
        tokens += ids
    return tokens


def main(model: str, samples: Path, out: Path) -> None:
    torch.set_num_threads(1)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").eval()
    prompts = json.loads(samples.read_text())
    answers = {
        name: [answer(network, p["context"], p["question"], press(RATIO)) for p in prompts]
        for name, press in PRESSES.items()
    }
    out.write_text(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
