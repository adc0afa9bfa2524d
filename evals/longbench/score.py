"""LongBench's scores: its own (eval.py), kvpress's, which strips leading blanks, and Google's ROUGE-L beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evals import metrics
from evals.longbench.catalog import CATALOG
from evals.longbench.protocols import PROTOCOLS
from evals.rouge import google_rouge_l, rouge_l
from evals.rows import check_strings, read_rows

BUCKETS = ("0-4k", "4-8k", "8k+")
"""LongBench-E: by the column `length`."""

Classes = Sequence[str]

METRICS: Mapping[str, Callable[[str, str, Classes], float]] = {
    "qa_f1": lambda prediction, answer, _: metrics.qa_f1(prediction, answer),
    "qa_f1_zh": lambda prediction, answer, _: metrics.qa_f1_zh(prediction, answer),
    "rouge_l": lambda prediction, answer, _: rouge_l(prediction, answer),
    "rouge_l_zh": lambda prediction, answer, _: metrics.rouge_l_zh(prediction, answer),
    "classification": metrics.classification,
    "count": lambda prediction, answer, _: metrics.count(prediction, answer),
    "retrieval": lambda prediction, answer, _: metrics.retrieval(prediction, answer),
    "retrieval_zh": lambda prediction, answer, _: metrics.retrieval_zh(prediction, answer),
    "code_similarity": lambda prediction, answer, _: metrics.code_similarity(prediction, answer),
}


class Scorer:
    """All scores of one task, `first` ("official" or "kvpress") first.

    recursion_zero   the score 0 that LongBench gives where its ROUGE package ends in a RecursionError
    """

    def __init__(self, task: str, first: str = "official", recursion_zero: bool = True) -> None:
        self.entry = CATALOG[task]
        self.metric = METRICS[self.entry.metric]
        if not recursion_zero and self.entry.metric == "rouge_l":
            self.metric = lambda prediction, answer, _: rouge_l(prediction, answer, too_deep=None)
        if not recursion_zero and self.entry.metric == "rouge_l_zh":
            self.metric = lambda prediction, answer, _: metrics.rouge_l_zh(prediction, answer, too_deep=None)
        self.first = first

    def __call__(self, prediction: str, answers: Sequence[str], classes: Classes = ()) -> dict[str, float]:
        official = prediction.lstrip("\n") if self.entry.first_line else prediction
        cut = {"official": self.line(official), "kvpress": self.line(prediction.lstrip())}
        order = sorted(cut, key=lambda name: name != self.first)
        scores = {name: self.best(self.metric, cut[name], answers, classes) for name in order}
        if self.entry.metric == "rouge_l":
            google: Callable[[str, str, Classes], float] = lambda text, answer, _: google_rouge_l(text, answer)  # noqa: E731
            scores["rouge_score"] = self.best(google, cut["official"], answers, classes)
        return scores

    def line(self, text: str) -> str:
        return text.split("\n")[0] if self.entry.first_line else text

    def best(
        self, metric: Callable[[str, str, Classes], float], text: str, answers: Sequence[str], classes: Classes
    ) -> float:
        return max([0.0, *(metric(text, answer, classes) for answer in answers)])


@dataclass(frozen=True)
class Scored:
    """Scores of one file of predictions: in per cent with two decimals, as eval.py rounds; `values`: each sample's."""

    task: str
    n: int
    scores: dict[str, float]
    values: dict[str, list[float]]


def score_predictions(
    path: str | Path, protocol: str = "official", e: bool = False, recursion_zero: bool = True
) -> list[Scored]:
    """Scores prediction logs in LongBench's format, without a model.

    path       a file TASK.jsonl, or a folder of them: a line {"pred", "answers", "all_classes", "length"} a sample
    protocol   whose score comes first, and whose classes a sample is judged by: official and agnostic (the file's
               last row's), kvpress and lukv (the first row's), defensivekv (each row's own)
    e          LongBench-E: three buckets by length, as tasks TASK_0-4k, TASK_4-8k, TASK_8k+; empty ones are left out

    Raises FileNotFoundError or ValueError with file and line.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol}: choose {', '.join(PROTOCOLS)}")
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.glob("*.jsonl") if task_of(file) in CATALOG)
        if not files:
            raise FileNotFoundError(f"no file named after a LongBench task (qasper.jsonl ...) in {path}")
        tasks: dict[str, Path] = {}
        for file in files:
            if (other := tasks.setdefault(task_of(file), file)) is not file:
                raise ValueError(f"{other} and {file} are predictions of one task: score each file by itself")
    elif task_of(path) in CATALOG:
        files = [path]
    else:
        raise ValueError(f"{path}: its name must be that of a LongBench task: {', '.join(CATALOG)}")
    return [scored for file in files for scored in score_file(file, protocol, e, recursion_zero)]


def task_of(path: Path) -> str:
    return path.stem.removesuffix("_e")


def score_file(path: Path, protocol: str, e: bool, recursion_zero: bool) -> list[Scored]:
    columns: dict[str, Any] = {"pred": str, "answers": list} | ({"length": int} if e else {})
    rows = read_rows(path, columns)
    for number, row in enumerate(rows, start=1):
        row["answers"] = check_strings(row["answers"], "answers", f"{path} line {number}")
    classes = [parse_classes(row.get("all_classes"), f"{path} line {i}") for i, row in enumerate(rows, start=1)]
    judged_by = [PROTOCOLS[protocol].judged_by(classes, own) for own in classes]
    task = task_of(path)
    scorer = Scorer(task, PROTOCOLS[protocol].scoring, recursion_zero)
    scores = [scorer(row["pred"], row["answers"], own) for row, own in zip(rows, judged_by, strict=True)]
    if not e:
        return [summary(task, scores, lambda values: sum(values) / len(values))]
    buckets: dict[str, list[dict[str, float]]] = {name: [] for name in BUCKETS}
    for row, score in zip(rows, scores, strict=True):
        buckets[bucket(row["length"])].append(score)
    return [summary(f"{task}_{name}", found, np.mean) for name, found in buckets.items() if found]


def summary(task: str, scores: Sequence[Mapping[str, float]], mean: Callable[[list[float]], Any]) -> Scored:
    values = {name: [score[name] for score in scores] for name in scores[0]}
    rounded = {name: float(round(100 * mean(each), 2)) for name, each in values.items()}
    return Scored(task, len(scores), rounded, values)


def bucket(length: int) -> str:
    return BUCKETS[0] if length < 4000 else BUCKETS[1] if length < 8000 else BUCKETS[2]


def parse_classes(classes: Any, place: str) -> tuple[str, ...]:
    """A list of names, nothing, or (in some copies of the data) the text of a Python list of names."""
    if isinstance(classes, str):
        classes = [single or double for single, double in re.findall(r"'([^']*)'|\"([^\"]*)\"", classes)]
    return check_strings(classes, "all_classes", place) if classes else ()
