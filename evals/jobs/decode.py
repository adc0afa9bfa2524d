"""One batch of contexts, many methods: prefill it once, evict it by each method, ask the questions, score."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from evals.jobs.device import out_of_memory
from evals.jobs.prompts import BATCH_TOKENS, Context, Prompt
from evals.run.folder import RunFolder
from evals.run.settings import Run
from lukv.backend.cache import RaggedCache, Selection
from lukv.backend.generate import answer, compress
from lukv.budgets.oracle import Oracle, OracleSettings
from lukv.eviction import Eviction
from lukv.model import LoadedModel

Line = dict[str, Any]
"""A line of samples.jsonl."""

JOINED_ROWS = 64
"""Sequences that are decoded together, at most, but always the batch of one method."""


@dataclass
class Cell:
    """A run at work. `eviction` None keeps everything. `failure`: why it cannot go on; the others do."""

    run: Run
    folder: RunFolder
    eviction: Eviction | None
    done: dict[str, Line]
    failed: list[Line] = field(default_factory=list)
    failure: Exception | None = None

    @property
    def needs_utility(self) -> bool:
        return self.eviction is not None and self.eviction.scorer.needs_utility

    def lacks(self, batch: Sequence[Context]) -> bool:
        return any(p.sample.id not in self.done for context in batch for p in context)

    def record(self, lines: Sequence[Line]) -> list[Line]:
        """Write down what is new of these lines; returns it."""
        new = [line for line in lines if line["id"] not in self.done]
        self.folder.append(new)
        self.failed += [line for line in new if "error" in line]
        self.done.update({line["id"]: line for line in new if "error" not in line})
        return new


def parts(batch: list[Context], cells: Sequence[Cell]) -> Iterator[tuple[list[Context], list[Cell]]]:
    """The batch for the cells that compress a context once, whatever is asked; then one question of each context after
    the other for those whose scorer must know what the answer needs (Scorer.needs_utility)."""
    yield batch, [cell for cell in cells if not cell.needs_utility]
    for turn in range(len(batch[0])):
        yield [[context[turn]] for context in batch], [cell for cell in cells if cell.needs_utility]


def attempt(
    batch: list[Context], cells: list[Cell], model: LoadedModel, join: bool
) -> Iterator[tuple[Cell, list[Line]]]:
    """The batch's lines for each cell. Where memory does not hold it: one context after the other, then one cell after
    the other; a sample that does not fit even alone is recorded as failed."""
    try:
        yield from answer_batch(batch, cells, model, join)
        return
    except (RuntimeError, MemoryError) as e:
        reason = out_of_memory(e)
        if reason is None:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(batch) > 1:
        for context in batch:
            yield from attempt([context], cells, model, join)
    elif len(cells) > 1:
        for cell in cells:
            yield from attempt(batch, [cell], model, join)
    else:
        yield cells[0], [{"id": p.sample.id, "task": p.task.name, "error": reason} for p in batch[0]]


@torch.inference_mode()
def answer_batch(
    batch: list[Context], cells: list[Cell], model: LoadedModel, join: bool
) -> Iterator[tuple[Cell, list[Line]]]:
    """Prefill the batch's contexts, evict them by each cell's method, decode; with `join` many cells together.

    Cells that are decoded together stay together until all of them have the batch, so that a run which goes on after a
    stop computes what an uninterrupted one would have, to the last bit.
    """
    groups = joined(cells, batch) if join else [[cell] for cell in cells]
    groups = [group for group in groups if any(cell.lacks(batch) for cell in group)]
    if not groups:
        return
    rows = [list(context[0].context) for context in batch]
    at_work = [cell for group in groups for cell in group]
    attention = cells[0].run["attention"]
    worth = utilities(batch, model) if cells[0].needs_utility else None
    start = time.perf_counter()
    if len(at_work) == 1 and worth is None:  # no layer has to wait for another method
        (cell,) = at_work
        cache = compress(model, rows, eviction=cell.eviction, attention=attention)
        synchronize(model.device)
        yield cell, asked([cell], batch, cache, model, [time.perf_counter() - start])[0]
        return
    scorers = [cell.eviction.scorer for cell in at_work if cell.eviction is not None]
    full = compress(model, rows, observe=list(dict.fromkeys(scorers)), attention=attention)
    synchronize(model.device)
    prefill = time.perf_counter() - start
    for group in groups:
        selections: list[Selection] = []
        chosen: list[Cell] = []
        seconds = []
        for cell in group:
            start = time.perf_counter()
            try:
                selections.append(full.select(cell.eviction, worth))
            except Exception as error:  # this method's own fault: the others go on
                if out_of_memory(error):
                    raise
                cell.failure = error
                continue
            chosen.append(cell)
            seconds.append(time.perf_counter() - start)
        if not chosen:
            continue
        start = time.perf_counter()
        whole = len(chosen) == 1 and chosen[0].eviction is None
        cache = full if whole else full.keeping(selections)
        synchronize(model.device)
        kept_s = (time.perf_counter() - start) / len(chosen)
        lines = asked(chosen, batch, cache, model, [prefill + s + kept_s for s in seconds], prefill, len(at_work))
        yield from zip(chosen, lines, strict=True)


def utilities(batch: Sequence[Context], model: LoadedModel) -> list[list[torch.Tensor]]:
    """Of each context and layer [K, T]: what its tokens are worth to the full cache's answer to its one question."""
    measured = []
    for (prompt,) in batch:
        sample = prompt.sample
        oracle = Oracle(model, OracleSettings(horizon=sample.max_new_tokens))
        measured.append([*oracle.context(prompt.context).utility(prompt.question, stop=model.stop_at(sample.stop))])
    return measured


def joined(cells: Sequence[Cell], batch: Sequence[Context]) -> list[list[Cell]]:
    """Cells in groups that are decoded together: at most JOINED_ROWS sequences, and no more entries than a full cache
    of BATCH_TOKENS has. Those that keep equally much are neighbours: attention of equally long heads is one call."""
    lengths = [len(context[0].context) for context in batch]
    kept = [sum(float(c.eviction.budget.of(n)) * n if c.eviction else n for n in lengths) for c in cells]
    groups: list[list[Cell]] = []
    room = 0.0
    for i in sorted(range(len(cells)), key=kept.__getitem__):
        if not groups or room < kept[i] or (len(groups[-1]) + 1) * len(batch) > JOINED_ROWS:
            groups.append([])
            room = float(BATCH_TOKENS)
        groups[-1].append(cells[i])
        room -= kept[i]
    return groups


def asked(
    cells: Sequence[Cell],
    batch: Sequence[Context],
    cache: RaggedCache,
    model: LoadedModel,
    prefill: Sequence[float],
    common: float = 0.0,
    sharing: int = 1,
) -> list[list[Line]]:
    """Ask the first question of each context, the second of each, ...: the lines of each cell. `cache` holds the
    batch's rows for the first cell, then for the second, ...

    prefill: seconds until each cell's cache was there, `common` of them spent for `sharing` cells at once.
    """
    kept = np.asarray(cache.kept())
    stored, full = cache.row_nbytes, cache.full_row_nbytes
    turns = len(batch[0])
    lines: list[list[Line]] = [[] for _ in cells]
    for turn in range(turns):
        prompts = [context[turn] for context in batch]
        sample = prompts[0].sample
        start = time.perf_counter()
        said = answer(
            model,
            cache,
            [list(p.question) for p in prompts] * len(cells),
            sample.max_new_tokens,
            model.eos_ids,
            model.stop_at(sample.stop),
            min_new_tokens=sample.min_new_tokens,
            first_token_may_end=sample.first_token_may_end,
        )
        synchronize(model.device)
        decoding = (time.perf_counter() - start) / len(cells)
        cache.rollback()
        for i, before in enumerate(prefill):
            times = {
                "prefill_s": before,
                "ttft_s": before + said.ttft_s,
                "tpot_s": said.tpot_s,
                "total_s": ((before - common + common / sharing) / turns + decoding) / len(batch),
                "batch": len(batch),
                "shared": len(cells),
            }
            for row, prompt in enumerate(prompts, i * len(prompts)):
                line = scored(prompt, said.tokens[row], model)
                line |= budget(kept[:, row], len(prompt.context), int(stored[row]), int(full[row]))
                lines[i].append({**line, "times": times, "attention": cache.kernel})
    return lines


def scored(prompt: Prompt, tokens: list[int], model: LoadedModel) -> Line:
    """The answer's part of a line of samples.jsonl."""
    text = model.decode(tokens)
    scores: Mapping[str, float] = dict(prompt.task.metric(text, prompt.sample))
    return {
        "id": prompt.sample.id,
        "task": prompt.task.name,
        "prediction": text,
        "references": list(prompt.sample.references),
        "score": next(iter(scores.values())),
        "scores": scores,
    }


def budget(kept: np.ndarray, tokens: int, stored: int, full: int) -> Line:
    """The cache's part. kept [layers, K] entries of `tokens` each; bytes stored, and of a full cache."""
    return {
        "context_tokens": tokens,
        "kept_share": float(kept.sum()) / (kept.size * tokens),
        "kept": kept.tolist(),
        "cache_bytes": stored,
        "full_cache_bytes": full,
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
