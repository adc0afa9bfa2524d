"""Processor seconds to make RULER's samples (other jobs do not count), with the share spent in the tokenizer.

Without --sources, RULER's essay and question tasks are left out and their stand-ins are measured.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from transformers import AutoTokenizer

from benchmarks._section import Section, run
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


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokenizer", default="models/tiny", help="folder of a transformers tokenizer")
    parser.add_argument("--sources", help="folder with PaulGrahamEssays.json, punkt_tab/, squad.json, hotpotqa.json")
    parser.add_argument("--lengths", type=int, nargs="+", help="default: 4096, with --full 32768 too")
    parser.add_argument("--samples", type=int, help="a task; default: 20, with --full 100")
    parser.add_argument("--ruler-version", type=int, default=2024)


def measure(section: Section) -> None:
    options = section.options
    samples = options.samples or (100 if section.full else 20)
    lengths = options.lengths or ([4096, 32768] if section.full else [4096])
    tokenizer = Timed(AutoTokenizer.from_pretrained(options.tokenizer))
    code = f"version {options.ruler_version} of its code"
    section.text(f"{samples} samples a task, {code}, tokenizer {options.tokenizer}; processor time.")
    section.head("task", "length", "units", "seconds", "in the tokenizer")
    left_out: dict[str, str] = {}
    for length in lengths:
        benchmark = Ruler(length, samples=samples, ruler_version=options.ruler_version, sources=options.sources)
        start, tokenizer.seconds = time.process_time(), 0.0
        for task in benchmark.tasks(tokenizer):
            seconds = time.process_time() - start
            units = task.samples[0].extra["units"]
            section.row(task.name, length, units, f"{seconds:.2f}", f"{tokenizer.seconds / seconds:.0%}")
            start, tokenizer.seconds = time.process_time(), 0.0
        left_out |= benchmark.facts()["left_out"]
    if left_out:
        section.text("Left out: " + "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) + ".")


if __name__ == "__main__":
    run("Making RULER's samples", measure, add_options)
