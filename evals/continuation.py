"""Text that simply goes on: no question, no chat template. The answer is what the text says next.

Heads that serve the context's own next words are worth nothing in samples that ask a question. They are worth something
here: for calibration (calibration=continuation, and as a part of calibration=mix), and as a benchmark of its own.
"""

from __future__ import annotations

import platform
import random
import sysconfig
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from evals.metrics import edit_similarity
from evals.rows import data_files, read_rows
from evals.task import Sample, Task, Tokenizer, count_tokens
from lukv.names import suggest_nearest

VERSION = 1
SEEDS = 4  # each has a part of every text to itself
LETTERS = 6  # of a block, for each token that a sample needs; a block that has fewer tokens is passed over
SUFFIXES: Mapping[str, Sequence[str]] = {
    "code": (".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cs", ".go", ".java", ".js", ".ts", ".rs"),
    "prose": (".txt", ".md", ".rst", ".jsonl"),
}
"""Task -> which files of a folder are its text."""


class Continuation:
    """Pieces of text that are cut in two: the first part is compressed, and the model goes on.

    Each seed has a quarter of every text to itself, so that samples of different seeds have nothing in common, whatever
    their length. Within it the samples are the same for the same length, seed and tokenizer, whatever `limit` is.

    length          tokens of the part that is compressed, at most; it ends before a blank
    tasks           "code", "prose" or both
    code, prose     where the text is from: a file, or a folder whose files follow one another by name; .json and .jsonl
                    files have one {"text": ...} a line, as RULER's essays. None: the sources of Python's standard
                    library, and the pages that Python's help() shows
    lead            tokens of the text that follow the compressed part and stand where a question would; 0: none
    max_new_tokens  tokens of the text behind them, which are the reference, and of the answer
    seed            0 to 3
    """

    def __init__(
        self,
        length: int = 750,
        tasks: str | Sequence[str] = ("code", "prose"),
        code: str | None = None,
        prose: str | None = None,
        lead: int = 8,
        max_new_tokens: int = 64,
        seed: int = 0,
    ) -> None:
        if length < 1 or lead < 0 or max_new_tokens < 1:
            raise ValueError(
                f"benchmark.length={length} and benchmark.max_new_tokens={max_new_tokens} must be at least 1, "
                f"benchmark.lead={lead} at least 0"
            )
        if seed not in range(SEEDS):
            raise ValueError(f"benchmark.seed={seed}: choose one of 0 to {SEEDS - 1}, each has a text of its own")
        self.name = f"continuation-{length}"
        self.length, self.lead, self.max_new_tokens, self.seed = length, lead, max_new_tokens, seed
        self.chosen = [tasks] if isinstance(tasks, str) else list(tasks)
        for task in self.chosen:
            if task not in SUFFIXES:
                near = suggest_nearest(task, SUFFIXES)
                raise ValueError(f"benchmark.tasks: no task {task!r}.{near} There are: {', '.join(SUFFIXES)}")
        self.places = {"code": code, "prose": prose}
        for task in self.chosen:
            place = self.places[task]
            if place is not None and not Path(place).expanduser().exists():
                raise FileNotFoundError(f"benchmark.{task}={place} is missing: a file or a folder is expected")
        self.read: dict[str, dict[str, str]] = {}

    def tasks(self, tokenizer: Tokenizer, limit: int | None = None) -> Iterator[Task]:
        for name in self.chosen:
            text = read_text(name, self.places[name])
            self.read[name] = {"sha256": sha256(text.encode()).hexdigest()[:16]}
            if self.places[name] is None:
                self.read[name]["python"] = platform.python_version()
            samples = list(self.samples(name, text, tokenizer, limit))
            if not samples:
                raise ValueError(
                    f"benchmark.{name}: the {len(text)} letters of its text are too few: a quarter of them has no "
                    f"piece of {self.tokens} tokens; name a longer text, or choose a smaller benchmark.length"
                )
            yield Task(name, VERSION, f"{name} that goes on", samples, similarity)

    @property
    def tokens(self) -> int:
        """Of a sample, the answer included."""
        return self.length + self.lead + self.max_new_tokens

    def samples(self, task: str, text: str, tokenizer: Tokenizer, limit: int | None) -> Iterator[Sample]:
        """At most `limit` samples, from blocks of this seed's quarter in random order."""
        first, end = (len(text) * part // SEEDS for part in (self.seed, self.seed + 1))
        size = LETTERS * self.tokens
        starts = list(range(first, end - size + 1, size))
        random.Random(self.seed).shuffle(starts)
        made = 0
        for start in starts:
            if made == limit:
                return
            block = text[start : start + size]
            block = block[block.find("\n") + 1 :]  # from where a line begins, if one does
            if count_tokens(tokenizer, block) >= self.tokens:
                yield self.sample(task, start, block, tokenizer)
                made += 1

    def sample(self, task: str, start: int, block: str, tokenizer: Tokenizer) -> Sample:
        context = take_tokens(block, self.length, tokenizer)
        rest = block[len(context) :]
        lead = take_tokens(rest, self.lead, tokenizer) if self.lead else ""
        answer = take_tokens(rest[len(lead) :], self.max_new_tokens, tokenizer)
        return Sample(
            id=f"{task}-{start}",
            task=task,
            context=context,
            question=lead,
            references=(answer.removeprefix(" "),),  # which job=calibrate puts before every reference
            max_new_tokens=self.max_new_tokens,
            chat=False,
            layout="whole",
        )

    def facts(self) -> Mapping[str, Any]:
        """The texts by their content, not by where they lie."""
        return {
            "benchmark": "continuation",
            "length": self.length,
            "lead": self.lead,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "texts": self.read,
        }


def take_tokens(text: str, tokens: int, tokenizer: Tokenizer) -> str:
    """The beginning of a text, of at most so many tokens. It ends before a blank, where words and tokens end, if there
    is one."""
    most = bisect_right(range(len(text) + 1), tokens, key=lambda end: count_tokens(tokenizer, text[:end])) - 1
    blank = f"{text} ".rfind(" ", 0, most + 1)
    return text[: blank if blank > 0 else most]


def similarity(prediction: str, sample: Sample) -> dict[str, float]:
    return {"edit_similarity": edit_similarity(prediction, sample.references[0])}


def read_text(task: str, place: str | None) -> str:
    """The whole text of a task. Raises FileNotFoundError for a folder without such files, ValueError for a bad file."""
    if place is None:
        return read_library() if task == "code" else read_help()
    path = Path(place).expanduser()
    files = data_files(path, SUFFIXES[task]) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"benchmark.{task}={place} has no file of {', '.join(SUFFIXES[task])}")
    return "\n\n".join(read_file(file) for file in files)


def read_file(path: Path) -> str:
    if path.suffix in (".json", ".jsonl"):
        return "\n\n".join(row["text"] for row in read_rows(path, {"text": str}))
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start + 1}: {error.reason})") from error


def read_library() -> str:
    """The modules of Python's standard library by name, without private ones: some of these differ by machine."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("[!_]*.py"))
    return "\n\n".join(read_file(file) for file in files)


def read_help() -> str:
    """The pages of Python's reference that help() shows."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))
