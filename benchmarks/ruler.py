"""Processor seconds to make RULER's samples (other jobs do not count), with the share spent in the tokenizer.

    python benchmarks/ruler.py --tokenizer models/tiny --sources PATH --lengths 4096 32768 --samples 100

Without --sources, RULER's essay and question tasks are left out and their stand-ins are measured.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from transformers import AutoTokenizer

from evals.ruler import Ruler


class Timed:
    """The tokenizer, and the seconds spent in it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.seconds = 0.0

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        start = time.process_time()
        ids = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        self.seconds += time.process_time() - start
        return ids

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="models/tiny", help="folder of a transformers tokenizer")
    parser.add_argument("--sources", help="folder with PaulGrahamEssays.json, punkt_tab/, squad.json, hotpotqa.json")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--vintage", type=int, default=2024)
    options = parser.parse_args()
    tokenizer = Timed(AutoTokenizer.from_pretrained(options.tokenizer))
    print(f"{options.samples} samples a task, vintage {options.vintage}, tokenizer {options.tokenizer}")
    print(f"{'task':22} {'length':>7} {'units':>7} {'seconds':>8} {'tokenizer':>9}")
    for length in options.lengths:
        benchmark = Ruler(length, samples=options.samples, vintage=options.vintage, sources=options.sources)
        start, tokenizer.seconds = time.process_time(), 0.0
        for task in benchmark.tasks(tokenizer):
            seconds = time.process_time() - start
            units = task.samples[0].extra["units"]
            print(f"{task.name:22} {length:7} {units:7} {seconds:8.2f} {tokenizer.seconds / seconds:9.0%}", flush=True)
            start, tokenizer.seconds = time.process_time(), 0.0
        for name, reason in benchmark.facts()["left_out"].items():
            print(f"left out: {name}: {reason}")


if __name__ == "__main__":
    main()
