"""LongBench's ROUGE-L beside that of Google's package rouge-score, which most other papers use."""

from __future__ import annotations

from pathlib import Path

from evals.longbench.catalog import CATALOG
from evals.longbench.score import Scorer, task_of
from evals.rows import read_rows

DIFFERENCE = (
    "They cut texts into words differently. LongBench's: sentences end at every full stop and words at blanks,\n"
    "case and punctuation count, a repeated word counts once. rouge-score: lower case, only a-z and 0-9, every\n"
    "repetition counts."
)


def compare_rouge(path: Path) -> list[tuple[str, float, float]]:
    """(task, LongBench's ROUGE-L, rouge-score's ROUGE-L) in per cent for each prediction log of a ROUGE-L task.

    path   a file TASK.jsonl, or a folder of them, that `score_predictions` accepts

    Both are the mean over all samples of the best answer's score, on the text that LongBench's own program scores.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    rouge = [file for file in files if task_of(file) in CATALOG and CATALOG[task_of(file)].metric == "rouge_l"]
    return [(file.stem, *compare_file(file)) for file in rouge]


def compare_file(path: Path) -> tuple[float, float]:
    from rouge_score.rouge_scorer import RougeScorer  # half a second, and needed only here

    scorer, package = Scorer(task_of(path)), RougeScorer(["rougeL"])

    def package_score(text: str, answer: str, _: object) -> float:
        return float(package.score(answer, text)["rougeL"].fmeasure)

    rows = read_rows(path, {"pred": str, "answers": list})
    texts = [scorer.line(row["pred"].lstrip("\n") if scorer.entry.first_line else row["pred"]) for row in rows]
    both = [
        [scorer.best(metric, text, row["answers"], ()) for metric in (scorer.metric, package_score)]
        for text, row in zip(texts, rows, strict=True)
    ]
    ours, theirs = (100 * sum(scores) / len(scores) for scores in zip(*both, strict=True))
    return ours, theirs
