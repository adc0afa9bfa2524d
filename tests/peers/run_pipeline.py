"""kvpress's side of test_pipeline.py, run by its own Python: `run_pipeline.py MODEL CALLS OUT`.

CALLS is JSON: [{"context": text, "options": what the pipeline is called with}]. OUT becomes
{press: {share removed: [what each call returned]}}.
"""

import json
import sys
from pathlib import Path

import kvpress
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

PRESSES = {
    "keydiff": lambda ratio: kvpress.KeyDiffPress(ratio),
    "snapkv": lambda ratio: kvpress.SnapKVPress(ratio, window_size=64, kernel_size=5),
    "full": lambda ratio: None,
}
RATIOS = (0.5, 0.75)  # exact in binary, as is the share that is kept


def main(model: str, calls: Path, out: Path) -> None:
    torch.set_num_threads(1)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").eval()
    words = AutoTokenizer.from_pretrained(model)
    pipe = pipeline("kv-press-text-generation", model=network, tokenizer=words, device="cpu")
    asked = json.loads(calls.read_text())
    answers = {
        name: {str(ratio): [pipe(a["context"], press=press(ratio), **a["options"]) for a in asked] for ratio in RATIOS}
        for name, press in PRESSES.items()
    }
    out.write_text(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
