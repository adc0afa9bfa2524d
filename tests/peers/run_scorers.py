"""kvpress's own scores and prompts, run by a Python of its own: `run_scorers.py EVALUATION < CASES > VALUES`.

EVALUATION is the folder `evaluation` of kvpress's source distribution, which its wheel lacks. A case is a JSON line:
{"benchmark", "task", "prediction", "answer"}, answered by "scores"; or {"benchmark", "task", "row"}, answered by the
"prompts" that kvpress's create_huggingface_dataset.py makes of that row. `tests/golden/kvpress_*.jsonl` are both, cases
with their values, so the same command renews them.
"""

import contextlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd

EVALUATION = Path(sys.argv[1])
sys.path.insert(0, str(EVALUATION))
for package, name in (("bert_score", "score"), ("tqdm", "tqdm")):  # one is not called, the other prints
    sys.modules[package] = types.ModuleType(package)
    setattr(sys.modules[package], name, lambda values: values)

FOLDERS = {
    "infinitebench": "infinite_bench",
    "longbench_v2": "longbenchv2",
    "loogle": "loogle",
    "zeroscrolls": "zero_scrolls",
}


def load(benchmark):
    return __import__(f"benchmarks.{FOLDERS[benchmark]}.calculate_metrics", fromlist=["x"])


def score(benchmark, task, prediction, answer):
    program = load(benchmark)
    if benchmark == "infinitebench":
        return {"kvpress": program.get_score_one(prediction, answer, task, "")}
    if benchmark == "longbench_v2":
        return {"kvpress": float(program.score(prediction, answer))}
    if task == "shortdep_cloze":
        exact, _ = program.get_exact_match(answer, prediction)
        partial, count = program.get_partial_match(answer, prediction)
        return {"exact_match": exact / count, "partial_match": partial / count}
    found = {}
    for metric in (program.get_rouge_score, program.get_bleu_score):
        with contextlib.redirect_stdout(sys.stderr):
            found |= program.try_except_metric(metric)(answer, prediction)
    return found


class Rows:
    """A data set that is asked for what the script asks for."""

    def __init__(self, frame):
        self.frame = frame

    def to_pandas(self):
        return self.frame.copy()

    def __getitem__(self, task):
        return self


def make_prompts(benchmark, task, row):
    """What the script pushes to the hub for one row of one task."""
    made = []

    class Dataset:
        def __init__(self, frame):
            self.frame = frame

        @classmethod
        def from_pandas(cls, frame):
            return cls(frame)

        def push_to_hub(self, *args, config_name=None, **options):
            rows = self.frame.to_dict("records")
            made.extend(r for r in rows if config_name in (None, "0shot", task) and r.get("task", task) == task)

    def load_dataset(name, configuration=None, **options):
        asked = "longdep_summarization" if configuration == "summarization" else configuration
        others = benchmark == "loogle" and asked != task
        values = {name: np.array(v) if isinstance(v, list) else v for name, v in row.items()}  # as `datasets` has it
        return Rows(pd.DataFrame([] if others else [values], columns=list(row)))

    stub = types.ModuleType("datasets")
    stub.Dataset, stub.load_dataset = Dataset, load_dataset
    stub.Features = stub.Sequence = stub.Value = lambda *args: None
    sys.modules["datasets"] = stub
    script = EVALUATION / "benchmarks" / FOLDERS[benchmark] / "create_huggingface_dataset.py"
    source = script.read_text(encoding="utf-8")
    if benchmark == "infinitebench":  # its loop checks that each task has rows of its own kind
        source = source.replace("\nfor task in [", f"\nfor task in [{task!r}] or [", 1)
    exec(compile(source, str(script), "exec"), {"__name__": "script"})
    names = ("context", "question", "answer_prefix", "max_new_tokens")
    return [{name: r[name] for name in names} for r in made]


def main():
    for line in sys.stdin:
        case = json.loads(line)
        where = case["benchmark"], case["task"]
        if "row" in case:
            case["prompts"] = make_prompts(*where, case["row"])
        else:
            case["scores"] = score(*where, case["prediction"], case["answer"])
        print(json.dumps(case, ensure_ascii=False))


if __name__ == "__main__":
    main()
