"""The types of what a run folder holds: run.json, a line of samples.jsonl, result.json.

Scores and shares are in 0..1, times in seconds, memory in bytes. tests/cli/test_records.py checks real files against
these types, and runs/README.md explains the files from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict


class Machine(TypedDict):
    system: str
    cpus: int | None
    threads: int  # of torch


class Provenance(TypedDict):
    """Which code, on what. git_sha and dirty are None outside a git repository."""

    git_sha: str | None
    dirty: bool | None
    versions: dict[str, str]  # package -> version
    device: str  # the GPU's name, or the processor's
    machine: Machine


class BegunRun(Provenance):
    """What every run.json has from the start."""

    run_id: str
    config_hash: str  # of everything that can change the result: settings, and contents of input files
    inputs: dict[str, str]  # setting that names a file or folder -> fingerprint of its content
    model_commit: str | None
    command: str
    started: str  # ISO 8601, UTC


class RunRecord(BegunRun, total=False):
    """run.json."""

    repeat: str  # the command that does this run alone
    prompts: dict[str, str]  # task and version -> hash of all its token ids; job=latency has none
    references: dict[str, str]  # task and version -> hash of the right answers; job=evaluate only
    weights_hash: str  # of the model as it was loaded; job=evaluate only
    benchmark: dict[str, Any]  # facts that explain a difference; `left_out`: task -> reason; job=latency has none
    caveats: list[str]  # what cannot be known of an input, such as a table that does not say what it was made for
    model_caveats: list[str]  # what makes the model's answers doubtful, a line each
    taken_over: str  # the run with a smaller limit= whose samples this one began with
    resumed: list[str]  # when the run went on after a stop
    attention: list[str] | None  # decode kernels in use
    finished: str


class Times(TypedDict):
    """Of the batch that the sample was in: `batch` contexts together, of each of `shared` runs."""

    prefill_s: float  # until the compressed cache was there
    ttft_s: float  # time to first token, prefill included
    tpot_s: float  # time per output token
    total_s: float  # this sample's share of all the work
    batch: int
    shared: int


class KeptTokens(TypedDict):
    """Which tokens of a context stayed, where record_kept= asked for it."""

    tokens: list[str]  # the context, token by token
    layers: dict[str, str]  # "0-3" or "4" -> a digit a token: 9 if all KV heads of these layers kept it, 0 if none


class WhileAnswering(TypedDict):
    """What the evictions while answering (decoding=) left, one after the other."""

    tokens: list[int]  # tokens seen then: context, question and answer so far
    entries: list[int]  # entries that stayed, of all heads together
    kept: list[list[int]]  # those of the last of them [layers, KV heads]; [] if there was none


class OlderSample(TypedDict):
    """What every line of samples.jsonl has, unless the sample failed."""

    id: str
    task: str
    prediction: str
    references: list[str]
    score: float
    scores: dict[str, float]  # by the name of the metric; the first one is `score`
    context_tokens: int
    kept_share: float
    kept: list[list[int]]  # entries kept [layers, KV heads]
    cache_bytes: int  # of the compressed context as it is stored, scales and zero points included
    full_cache_bytes: int  # in the model's dtype
    times: Times
    attention: str  # decode kernel


class SampleRecord(OlderSample, total=False):
    """A line of samples.jsonl."""

    question: str  # what was asked about the context, up to QUESTION characters (evals/jobs/decode.py)
    answer_depth: float  # where the context says a right answer first, 0..1; not there where it says none
    length: int  # of the sample, as its benchmark counts it: tokens (RULER, needle) or words (LongBench)
    depth: float  # where the benchmark put the needle, 0..1
    turn: int  # of a conversation, from 1; context_tokens, kept and bytes are then of the context and the turns before
    kept_tokens: KeptTokens
    while_answering: WhileAnswering  # where decoding= evicts while answering


class FailedSample(TypedDict):
    """A line of samples.jsonl for a sample that did not fit into memory. The next start tries it again."""

    id: str
    task: str
    error: str


SampleLine = SampleRecord | FailedSample


class TaskScore(TypedDict):
    score: float
    n: int
    ci95: list[float]  # evals.stats.mean_interval: [low, high]


class PromptBudget(TypedDict):
    """Means over samples, of the compressed context."""

    asked: float  # a share of entries or of bytes, or tokens of each KV head
    kept_share: float
    kept_entries: float  # of all heads together
    cache_bytes: float  # of one compressed context
    full_cache_bytes: float
    entries: list[list[float]]  # kept of each head [layers, KV heads]
    heads: list[list[float]]  # kept shares of each head [layers, KV heads]


class BudgetReport(PromptBudget, total=False):
    answer_evictions: float  # how often the cache was evicted while answering; where decoding= does so
    answer_entries: float  # what the last of them left, of all heads together; not there if there was none


class TimeReport(TypedDict):
    """Medians over the samples that were decoded without other runs beside them, None if there are none: what many
    runs do together says nothing about one. total_s is the sum of every sample's share of the work."""

    prefill_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    batch: float
    shared: float
    total_s: float


class MemoryReport(TypedDict):
    peak_bytes: int  # of the GPU, or without one of the process


class OlderEvaluation(TypedDict):
    """What every result.json of job=evaluate has."""

    status: Literal["done"]
    run_id: str
    experiment: str  # Run.comparison_id: how a table of such results is called
    score: float  # mean of the tasks' scores
    ci95: list[float]
    tasks: dict[str, TaskScore]
    budget: BudgetReport
    time: TimeReport
    memory: MemoryReport
    attention: list[str]
    method: str
    model: str
    benchmark: str
    config: dict[str, Any]  # the budgets, cache_dtype, seed, limit, and the options chosen for the method's parts
    config_hash: str
    left_out: list[str]  # tasks; run.json says why


class Evaluation(OlderEvaluation, total=False):
    """result.json of job=evaluate."""

    label: str  # the method and each setting of its own: the row's name in a table


class OlderLatencyRow(TypedDict):
    """One method at one context length: medians over repeats."""

    method: str
    context_tokens: int
    batch: int
    prefill_s: float
    ttft_s: float
    tpot_s: float
    cache_bytes: float
    peak_bytes: float
    attention: str


class LatencyRow(OlderLatencyRow, total=False):
    answered_cache_bytes: float  # of the entries stored when the answer has ended: context, question and answer


class Latency(TypedDict):
    """result.json of job=latency."""

    status: Literal["done"]
    run_id: str
    rows: list[LatencyRow]
    attention: list[str]
    memory: MemoryReport


class Calibration(TypedDict):
    """result.json of job=calibrate."""

    status: Literal["done"]
    run_id: str
    tables: list[str]  # files in tables/
    summaries: dict[str, str]  # file -> what it says, in words


Result = Mapping[str, Any]
"""Any of the three, as it is read from result.json."""
