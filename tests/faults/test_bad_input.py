"""Every bad input we could think of, through the command line: one line, exit code 2, nothing that looks like a run.

Names and values: tests/cli/test_names.py. Tables: test_bad_table.py, models: test_bad_model.py. Here: what
benchmarks and prompts can be.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.as_typed import Command, process
from tests.faults.conftest import Refuses, jsonl, only, question
from tests.faults.test_bad_table import disguised

GOOD = question(1)

# --- benchmark files: name, content, what the line says


def rows(*changed: object) -> bytes:
    """Ten good lines, the sixth replaced."""
    made = [json.dumps(question(i)) for i in range(10)]
    for line in changed:
        made[5] = line if isinstance(line, str) else json.dumps(line)
    return ("\n".join(made) + "\n").encode()


FILES: list[tuple[str, bytes, str]] = [
    ("empty", b"", "is empty"),
    ("blank", b"\n\n\n", "is empty"),
    ("truncated", rows()[:-40], "line 10 is not JSON"),
    ("not UTF-8", rows().replace(b"Note 5", b"N\xf6te 5"), "line 6 is not UTF-8"),
    ("UTF-16", rows().decode().encode("utf-16"), "line 1 is not UTF-8"),
    ("binary", bytes(range(256)), "line 1 is not"),
    ("NUL bytes", b"\0" * 100, "line 1 is not JSON"),
    ("bad line in the middle", rows("{broken"), "line 6 is not JSON"),
    ("empty line in the middle", rows(""), "line 6 is not JSON"),
    ("a list in the middle", rows([1, 2]), "line 6 is a list, a JSON object is expected"),
    ("nested without end", rows("[" * 200_000), "line 6 is not JSON"),
    ("number without end", rows('{"context": ' + "9" * 10_000 + "}"), "line 6 is not JSON"),
    ("no column", rows({"context": "a", "question": "b"}), "line 6 has no 'answers'; it has: context, question"),
    ("wrong columns", rows({"text": "a", "label": "b"}), "line 6 has no 'context'; it has: label, text"),
    ("wrong type", rows(GOOD | {"context": 7}), "line 6: 'context' is an integer, expected a string"),
    ("no answers", rows(GOOD | {"answers": []}), "line 6: 'answers' must be a list of strings, at least one"),
    ("null answer", rows(GOOD | {"answers": [None]}), "line 6: 'answers' must be a list of strings"),
    ("half a surrogate pair", rows(GOOD | {"answers": ["\ud800"]}), "line 6 is not Unicode"),
    ("no tokens", rows(GOOD | {"max_new_tokens": 0}), "line 6: 'max_new_tokens' is 0"),
    ("same id twice", rows(GOOD | {"id": 1}), "2 samples of the benchmark have the same id: bad-1"),
    ("a task named as the mean of all", rows(GOOD | {"task": "mean"}), "a task cannot be named 'mean'"),
    ("empty context", rows(GOOD | {"context": ""}), "line 6: 'context' is empty"),
    ("longer than the model", rows(GOOD | {"context": "a" * 5000}), "random takes 4096"),
    ("answer longer than the model", rows(GOOD | {"max_new_tokens": 10**30}), "random takes 4096"),
]


@pytest.mark.parametrize(("content", "says"), [f[1:] for f in FILES], ids=[f[0] for f in FILES])
def test_a_benchmark_file(content: bytes, says: str, refuses: Refuses, short: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    line = refuses(2, says, *short, f"benchmark.data={path}", "method=snapkv")
    if "line" in says:
        assert str(path) in line
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["benchmark=jsonl"], "benchmark.data is not set: add benchmark.data=VALUE"),
        (["benchmark=jsonl", "benchmark.data={tmp}/no.jsonl"], "no.jsonl is missing: a jsonl file is expected"),
        (["benchmark=jsonl", "benchmark.data={tmp}"], "is a folder: a jsonl file is expected"),
        (
            ["benchmark=jsonl", "benchmark.data={tmp}/questions.jsonl", "benchmark.metric=qa_f2"],
            "Did you mean 'qa_f1'?",
        ),
        (["benchmark=longbench", "benchmark.data={tmp}/no"], "is not a folder of LongBench's jsonl files"),
        (["benchmark=longbench", "benchmark.data={tmp}"], "has no file of a LongBench task"),
        (["benchmark=longbench", "benchmark.data={tmp}", "benchmark.tasks=[qaspr]"], "Did you mean 'qasper'?"),
        (["benchmark=longbench", "benchmark.data={tmp}", "benchmark.tasks=[qasper]"], "has no qasper.jsonl"),
        (["benchmark=infinitebench", "benchmark.data={tmp}"], "has no file of InfiniteBench (passkey.jsonl ...;"),
        (["benchmark=infinitebench", "benchmark.tasks=[paskey]"], "Did you mean 'passkey'?"),
        (["benchmark=longbench_v2", "benchmark.data={tmp}/text.parquet"], "text.parquet is not a parquet file"),
        (["benchmark=longbench_v2", "benchmark.by=lenght"], "benchmark.by=lenght: choose difficulty, length, domain"),
        (["benchmark=loogle", "benchmark.data={tmp}/no"], "is missing: a folder of LooGLE's files is expected"),
        (["benchmark=zeroscrolls", "benchmark.split=train"], "benchmark.split=train: choose validation or test"),
        (["benchmark=ruler", "benchmark.tasks=[niah_singel_1]"], "Did you mean 'niah_single_1'?"),
        (["benchmark=ruler", "benchmark.tasks=[qa_1]"], "ruler task qa_1 needs squad.json"),
        (["benchmark=ruler", "benchmark.sources={tmp}/no"], "is not a folder"),
        (["benchmark=ruler", "benchmark.prepared={tmp}/no.parquet"], "is missing"),
        (["benchmark=ruler", "benchmark.prepared={tmp}/text.parquet"], "text.parquet is not a parquet file"),
        (["benchmark=ruler", "benchmark.length=100000", "benchmark.tasks=[niah_single_1]"], "random takes 4096"),
        (
            ["benchmark=ruler", "benchmark.length=20"],
            "no samples: ruler task niah_single_1 does not fit into 20 tokens",
        ),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_a_benchmark(args: list[str], says: str, refuses: Refuses, short: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("this is no parquet file")
    given = [arg.format(tmp=tmp_path) for arg in args]
    kept = [setting for setting in short if not setting.startswith("benchmark")]
    refuses(2, says, *kept, *given, "method=snapkv", "limit=1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="fa2 runs on CUDA devices")
def test_a_kernel_that_cannot_run_here(refuses: Refuses, short: list[str], tmp_path: Path) -> None:
    refuses(
        2, "fa2 needs a CUDA device, not cpu (attention=loop runs anywhere)", *short, "method=snapkv", "attention=fa2"
    )
    assert not list(tmp_path.glob("runs/*/run.json"))


def test_one_bad_line_in_other_peoples_formats(refuses: Refuses, short: list[str], tmp_path: Path) -> None:
    kept = [setting for setting in short if not setting.startswith("benchmark")]
    row = {"input": "q", "context": "c", "answers": ["a"], "length": 1, "all_classes": None}
    jsonl(tmp_path / "qasper.jsonl", [row, row, {**row, "length": "1"}])
    kept.append("method=snapkv")
    refuses(2, "qasper.jsonl line 3: 'length' is a string", *kept, "benchmark=longbench", f"benchmark.data={tmp_path}")
    row = {"context": "c", "question": "q", "answer_prefix": "", "answer": ["a"], "task": "vt", "max_new_tokens": 3}
    path = jsonl(tmp_path / "prepared.jsonl", [row, {**row, "answer": "a"}, row])
    refuses(2, "prepared.jsonl line 2: 'answer' is a string", *kept, "benchmark=ruler", f"benchmark.prepared={path}")


@pytest.mark.parametrize("benchmark", ["longbench", "longbench_v2", "infinitebench", "loogle", "zeroscrolls"])
def test_a_set_of_the_hub_without_a_network_is_refused_at_once(
    benchmark: str, refuses: Refuses, short: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own client would try six times, half a minute in all; `datasets` is not asked at all."""
    import datasets
    import huggingface_hub

    import lukv.checkpoint

    asked: list[bool] = []

    def nothing(*_: object, local_files_only: bool = False, **__: object) -> str:
        asked.append(local_files_only)
        raise OSError("not in the cache")

    monkeypatch.setattr(lukv.checkpoint, "hub_answers", lambda: False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", nothing)
    monkeypatch.delattr(datasets, "load_dataset")
    kept = [setting for setting in short if not setting.startswith("benchmark")]
    refuses(2, "set benchmark.data=FOLDER", *kept, "method=snapkv", f"benchmark={benchmark}")
    assert asked == ([] if benchmark == "loogle" else [True])


def test_what_is_too_long_is_refused_before_it_is_made(
    refuses: Refuses, short: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from evals.ruler import Ruler

    def none(*_: object) -> None:
        raise AssertionError("samples were made")

    monkeypatch.setattr(Ruler, "make", none)
    kept = [setting for setting in short if not setting.startswith("benchmark")]
    says = "ruler-5000: its samples have 5000 tokens, random takes 4096: choose a smaller benchmark.length"
    refuses(2, says, *kept, "method=snapkv", "benchmark=ruler", "benchmark.length=5000")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("method=snapkv scorer.window=0", "snapkv: window=0 must be at least 1"),
        ("method=snapkv scorer.kernel=4", "snapkv: kernel=4 must be odd"),
        ("method=snapkv scorer.pool=median", "snapkv: pool=median: choose max or avg"),
        ("method=snapkv scorer.order=no", "snapkv: order=no: choose pool_then_group or group_then_pool"),
        ("method=keydiff protection.sink=-1", "protection: sink=-1 and recent=0 must be at least 0"),
        ("method=lukv scorer=streaming", "no budget table at"),
        ("method=snapkv track=wandb track.mode=ofline", "track.mode=ofline is none of auto, online, offline"),
        ("method=snapkv job=latency job.repeats=0", "job.repeats=0 must be at least 1"),
        ("method=snapkv job=latency job.batch=0", "job.batch=0 must be at least 1"),
        ("method=lukv scorer=streaming job=latency", "no budget table at"),
        ("job=calibrate job.scorers=[snapky]", "job.scorers: no scorer named 'snapky'"),
        ("job=calibrate job.scorers=snapky", "job.scorers: no scorer named 'snapky'"),
        ("job=calibrate job.scope=heads", "choose one of global, layer"),
    ],
)
def test_a_method_is_refused_before_its_model_is_loaded(
    args: str, says: str, refuses: Refuses, short: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading a model of billions of weights takes minutes."""
    from evals.run import build

    def never(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(build, "load_model", never)
    refuses(2, says, *short, *args.split())


def test_latency_of_no_length(refuses: Refuses, short: list[str]) -> None:
    refuses(2, "job.lengths=[] names no length", *short, "method=snapkv", "job=latency", "job.lengths=[]")


# --- prompts that are unusual but right


def test_prompts_of_every_length(command: Command, short: list[str], tmp_path: Path) -> None:
    """One token, fewer than the scorer's window, as many as the model takes: each keeps exactly its share."""
    made = [{"context": "x" * n, "question": "?", "answers": ["y"], "max_new_tokens": 2} for n in (1, 2, 31, 33, 4080)]
    path = jsonl(tmp_path / "lengths.jsonl", made)
    run = [*short, f"benchmark.data={path}", "method=snapkv", "benchmark.chat=false"]
    assert command(*run) == 0
    samples = [json.loads(line) for line in (only(tmp_path / "runs") / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 5
    for s in samples:
        assert [sum(layer) for layer in s["kept"]] == [int(0.2 * s["context_tokens"] * 2 + 0.5)] * 2


def test_more_tokens_than_a_context_has_keep_all_of_it(command: Command, short: list[str], tmp_path: Path) -> None:
    assert command(*short, "method=snapkv", "budget_tokens=100000") == 0
    result = json.loads((only(tmp_path / "runs") / "result.json").read_text())
    assert result["budget"]["kept_share"] == 1.0
    assert result["budget"]["asked"] == 100000


def test_settings_that_make_a_long_name(command: Command, short: list[str], tmp_path: Path) -> None:
    """A folder's name has a limit; runs that differ only beyond it have folders of their own."""
    many = [
        *("benchmark.question_aware=true", "benchmark.max_new_tokens=4", "benchmark.chat=false", "model.dtype=float32"),
        *("benchmark.metric=google_rouge_l", "scorer.kernel=5", "method=snapkv", "limit=1"),
    ]
    for window in (8, 9):
        assert command(*short, *many, f"scorer.window={window}") == 0
    names = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len(names) == 2
    assert max(map(len, names)) <= 200


@pytest.mark.slow
def test_as_a_process(short: list[str], tmp_path: Path) -> None:
    """The same through real processes: a pickle, and with debug=true the traceback of a bad line."""
    done = process(*short, "method=lukv", f"allocator.path={disguised('.npy')(tmp_path)}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("run.py: ")
    assert done.stderr.count("\n") == 1
    path = tmp_path / "bad.jsonl"
    path.write_bytes(rows("{broken"))
    done = process(*short, f"benchmark.data={path}", "method=snapkv", "debug=true")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert not (tmp_path / "ran").exists()
