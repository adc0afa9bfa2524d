"""One batch of contexts, many methods: prefill it once, evict it by each method, ask the questions, score."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from evals.errors import InputError
from evals.jobs.device import describe_out_of_memory, synchronize
from evals.jobs.lines import Line, describe_cache, describe_evictions, describe_kept, score_answer
from evals.jobs.prompts import BATCH_TOKENS, SharedContext, TokenizedSample
from evals.run.records import Times
from evals.task import Sample
from lukv.backend.cache import RaggedCache, Selection
from lukv.backend.generate import answer, append, compress
from lukv.backend.options import Later
from lukv.backend.passes import run_passes
from lukv.model import LoadedModel
from lukv.scoring import Prompt, Scorer
from lukv.selection import Eviction

ROWS_TOGETHER = 64
"""Sequences that are decoded together, at most. The batch of one method always is."""


@dataclass
class ActiveMethod:
    """A method at work. eviction: None keeps everything. done: lines by sample id. failure: why it cannot go on, while
    the others do. recorded: ids of the samples that also record which tokens stayed. later: what evicts while
    answering; None: nothing."""

    eviction: Eviction | None
    done: dict[str, Line]
    failed: list[Line] = field(default_factory=list, kw_only=True)
    failure: Exception | None = field(default=None, kw_only=True)
    recorded: frozenset[str] = field(default=frozenset(), kw_only=True)
    later: Later | None = field(default=None, kw_only=True)

    @property
    def scorer(self) -> Scorer | None:
        return None if self.eviction is None else self.eviction.scorer

    @property
    def cache_dtype(self) -> str:
        return "auto" if self.eviction is None else self.eviction.cache_dtype

    @property
    def needs_answer(self) -> bool:
        return self.scorer is not None and self.scorer.needs_answer

    def lacks(self, batch: Sequence[SharedContext]) -> bool:
        """Whether a sample of the batch is not done."""
        return any(s.sample.id not in self.done for context in batch for s in context)

    def record(self, lines: Sequence[Line]) -> list[Line]:
        """Take those of these lines that are new, and return them."""
        new = [line for line in lines if line["id"] not in self.done]
        self.write(new)
        self.failed += [line for line in new if "error" in line]
        self.done.update({line["id"]: line for line in new if "error" not in line})
        return new

    def write(self, new: Sequence[Line]) -> None:
        """Whatever else is to be done with new lines."""


Active = TypeVar("Active", bound=ActiveMethod)

Answered = Iterator[tuple[Active, list[Line]]]


def answer_each(
    batch: list[SharedContext], runs: Sequence[Active], model: LoadedModel, together: bool
) -> Answered[Active]:
    """The batch's lines for every run that can go on."""
    able = [each for each in runs if each.failure is None]
    for part, some in split_by_need(batch, able):
        if some:
            yield from answer_within_memory(part, some, model, together)


def split_by_need(
    batch: list[SharedContext], runs: Sequence[Active]
) -> Iterator[tuple[list[SharedContext], list[Active]]]:
    """The batch for the runs that compress a context once, whatever is asked about it. Then one question of each
    context after the other for those whose scorer must know its answer (Scorer.needs_answer)."""
    for each in runs if is_conversation(batch) else ():
        check_talking(each.scorer)
    yield batch, [each for each in runs if not each.needs_answer]
    for turn in range(len(batch[0])):
        yield [[context[turn]] for context in batch], [each for each in runs if each.needs_answer]


def answer_within_memory(
    batch: list[SharedContext], runs: list[Active], model: LoadedModel, together: bool
) -> Answered[Active]:
    """Each run's lines for the batch. Where memory does not hold it: one context after the other, then one run after
    the other. A sample that does not fit even alone is recorded as failed."""
    try:
        yield from answer_batch(batch, runs, model, together)
        return
    except (RuntimeError, MemoryError) as e:
        reason = describe_out_of_memory(e)
        if reason is None:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(batch) > 1:
        for context in batch:
            yield from answer_within_memory([context], runs, model, together)
    elif len(runs) > 1:
        for each in runs:
            yield from answer_within_memory(batch, [each], model, together)
    else:
        yield runs[0], [{"id": s.sample.id, "task": s.task.name, "error": reason} for s in batch[0]]


@torch.inference_mode()
def answer_batch(
    batch: list[SharedContext], runs: list[Active], model: LoadedModel, together: bool
) -> Answered[Active]:
    """Prefill the batch's contexts, evict them by each run's method, decode. together: many runs in one decoding.

    Extra passes that scorers ask for are run over the full cache, once for all runs. They count as prefill of the runs
    that ask for them.

    Runs that are decoded together stay together until all of them have the batch. So a run that goes on after a stop
    computes what an uninterrupted one would have, to the last bit.
    """
    groups = group_runs(runs, batch) if together else [[each] for each in runs]
    groups = [group for group in groups if any(each.lacks(batch) for each in group)]
    if not groups:
        return
    rows = [list(context[0].context) for context in batch]
    seen = [context[0].seen for context in batch]
    at_work = [each for group in groups for each in group]
    start = time.perf_counter()
    if len(at_work) == 1 and not runs[0].needs_answer:  # no layer has to wait for another method
        (alone,) = at_work
        later, every = (None, None) if alone.later is None else (alone.later.eviction, alone.later.every)
        cache = compress(model, rows, eviction=alone.eviction, later=later, every=every, questions=seen)
        synchronize(model.device)
        yield alone, ask([alone], batch, cache, model, [time.perf_counter() - start])[0]
        return
    scorers = list(dict.fromkeys(each.scorer for each in at_work if each.scorer is not None))
    answering = list(dict.fromkeys(each.later.eviction.scorer for each in at_work if each.later is not None))
    full = compress(model, rows, observe=scorers, observe_heads=answering, questions=seen)
    synchronize(model.device)
    prefill = time.perf_counter() - start
    prompts = [model.describe_prompt(row) for row in rows]
    if runs[0].needs_answer:
        prompts = add_answers(prompts, batch, full, model)
    start = time.perf_counter()
    run_passes(model, full, scorers, prompts)
    synchronize(model.device)
    passes = time.perf_counter() - start
    for group in groups:
        selections: list[Selection] = []
        selected: list[Active] = []
        seconds = []
        for each in group:
            start = time.perf_counter()
            try:
                selections.append(full.select(each.eviction))
            except Exception as error:  # this method's own fault: the others go on
                if describe_out_of_memory(error):
                    raise
                each.failure = error
                continue
            selected.append(each)
            asked = each.scorer is not None and each.scorer.makes_passes
            seconds.append(time.perf_counter() - start + passes * asked)
        if not selected:
            continue
        start = time.perf_counter()
        whole = len(selected) == 1 and selected[0].eviction is None and not is_conversation(batch)
        again = [each.later for each in selected]
        cache = full if whole else full.fork(selections, later=again, cache_dtype=selected[0].cache_dtype)
        synchronize(model.device)
        copying = (time.perf_counter() - start) / len(selected)
        until_cached = [prefill + s + copying for s in seconds]
        yield from zip(selected, ask(selected, batch, cache, model, until_cached, prefill, len(at_work)), strict=True)


def add_answers(
    prompts: Sequence[Prompt], batch: Sequence[SharedContext], full: RaggedCache, model: LoadedModel
) -> list[Prompt]:
    """The prompts with the one question that is asked about each, and what the full cache answers, its end included."""
    samples = [question for (question,) in batch]
    sample = samples[0].sample
    endings = list_endings(sample, model)
    questions = [list(each.question) for each in samples]
    said = answer(model, full, questions, sample.max_new_tokens, model.eos_ids, **endings)
    full.rollback()
    known = []
    for prompt, question, tokens in zip(prompts, questions, said.tokens, strict=True):
        stopped = endings["stop"] is not None and endings["stop"](tokens)
        ended = len(tokens) < sample.max_new_tokens and not stopped
        end = model.eos_ids[:1] if ended else ()
        known.append(replace(prompt, question=tuple(question), answer=(*tokens, *end)))
    return known


def group_runs(runs: Sequence[Active], batch: Sequence[SharedContext]) -> list[list[Active]]:
    """Runs in groups that are decoded together.

    A group has one cache_dtype, at most ROWS_TOGETHER sequences, and no more entries than a full cache of BATCH_TOKENS.
    Runs that keep equally much are neighbours, because attention of equally long heads is one call.
    """
    by_dtype: dict[str, list[Active]] = {}
    for each in runs:
        by_dtype.setdefault(each.cache_dtype, []).append(each)
    return [group for alike in by_dtype.values() for group in group_alike(alike, batch)]


def group_alike(runs: Sequence[Active], batch: Sequence[SharedContext]) -> list[list[Active]]:
    """The same for runs of one cache_dtype."""
    lengths = [len(context[0].context) for context in batch]
    kept = [sum(float(r.eviction.budget.of(n)) * n if r.eviction else n for n in lengths) for r in runs]
    groups: list[list[Active]] = []
    room = 0.0
    for i in sorted(range(len(runs)), key=kept.__getitem__):
        if not groups or room < kept[i] or (len(groups[-1]) + 1) * len(batch) > ROWS_TOGETHER:
            groups.append([])
            room = float(BATCH_TOKENS)
        groups[-1].append(runs[i])
        room -= kept[i]
    return groups


def ask(
    runs: Sequence[Active],
    batch: Sequence[SharedContext],
    cache: RaggedCache,
    model: LoadedModel,
    prefill: Sequence[float],
    common: float = 0.0,
    sharing: int = 1,
) -> list[list[Line]]:
    """Ask the first question of each context, then the second of each, and so on. Returns each run's lines.

    In between the cache is rolled back to the compressed context, or in a conversation goes on (see `go_on`).

    cache: the batch's rows for the first run, then for the second, and so on. Where it is evicted while answering, each
    question goes on from a copy of it, so that all of them find the same. prefill: seconds until each run's cache was
    there; `common` of them were spent once for `sharing` runs.
    """
    turns, evicts_again, talks = len(batch[0]), cache.evicts_by_itself, is_conversation(batch)
    seen = [list(context[0].context) for _ in runs for context in batch]
    lines: list[list[Line]] = [[] for _ in runs]
    for turn in range(turns):
        kept = np.asarray(cache.kept_counts)
        stored, full = cache.row_nbytes, cache.full_row_nbytes
        questions = [context[turn] for context in batch]
        sample = questions[0].sample
        start = time.perf_counter()
        said = answer(
            model,
            cache.select_rows(range(len(stored))) if evicts_again else cache,
            [list(q.question) for q in questions] * len(runs),
            sample.max_new_tokens,
            model.eos_ids,
            **list_endings(sample, model),
        )
        synchronize(model.device)
        decoding = (time.perf_counter() - start) / len(runs)
        if not evicts_again:
            cache.rollback()
        for i, before in enumerate(prefill):
            times: Times = {
                "prefill_s": before,
                "ttft_s": before + said.ttft_s,
                "tpot_s": said.tpot_s,
                "total_s": ((before - common + common / sharing) / (1 if talks else turns) + decoding) / len(batch),
                "batch": len(batch),
                "shared": len(runs),
            }
            for row, question in enumerate(questions, i * len(questions)):
                line = score_answer(question, said.tokens[row], model)
                line |= describe_cache(kept[:, row], len(seen[row]), int(stored[row]), int(full[row]))
                if runs[i].later is not None:
                    line["while_answering"] = describe_evictions(said.evictions[row])
                if question.sample.id in runs[i].recorded:
                    line["kept_tokens"] = describe_kept(cache, row, seen[row], model)
                lines[i].append({**line, "times": times, "attention": cache.kernel})
        if talks and turn + 1 < turns:
            start = time.perf_counter()
            for tokens, more in zip(seen, go_on(runs, questions, cache, said.tokens, model), strict=True):
                tokens += more
            synchronize(model.device)
            prefill, common = [(time.perf_counter() - start) / len(runs)] * len(runs), 0.0
    return lines


def is_conversation(batch: Sequence[SharedContext]) -> bool:
    """Whether the questions of each context are the turns of a conversation. All contexts of a batch are alike."""
    return batch[0][0].sample.conversation != ""


def check_talking(scorer: Scorer | None) -> None:
    """Raise InputError for a scorer that cannot go through the turns of a conversation."""
    if scorer is not None and scorer.needs_answer:
        raise InputError(f"scorer={scorer.name} has to know the answer before it evicts: not in a conversation")


def go_on(
    runs: Sequence[Active],
    questions: Sequence[TokenizedSample],
    cache: RaggedCache,
    said: Sequence[Sequence[int]],
    model: LoadedModel,
) -> list[list[int]]:
    """Let each row's turn stay in its cache, and evict those rows again whose run does so after every turn. Returns the
    token ids that stayed.

    The turn is read in one piece, question and answer, behind what was rolled back: rows that had ended were decoded
    along with the others. said: the answer of each row.
    """
    turns = []
    for question, answered in zip([*questions] * len(runs), said, strict=True):
        stays = question.sample.stays
        turns.append([*question.question, *(answered if stays is None else model.text_ids(stays))])
    append(model, cache, turns)
    due = np.repeat([each.later is not None and each.later.every is None for each in runs], len(questions))
    if due.any():
        cache.evict_again(due)
    else:
        cache.commit()
    return turns


def list_endings(sample: Sample, model: LoadedModel) -> dict[str, Any]:
    """What ends an answer besides its length and end-of-text, as both who answers and who measures utility takes it."""
    return {
        "stop": model.stop_at(sample.stop),
        "min_new_tokens": sample.min_new_tokens,
        "first_token_may_end": sample.first_token_may_end,
    }
