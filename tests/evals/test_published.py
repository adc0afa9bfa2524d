"""LongBench-v2, InfiniteBench, LooGLE and ZeroSCROLLS: prompts and scores as in kvpress, files, refusals."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from evals import hub
from evals.infinitebench import InfiniteBench
from evals.infinitebench.score import SCORES
from evals.longbench_v2 import LongBenchV2
from evals.longbench_v2.benchmark import official_score, score
from evals.loogle import LooGLE
from evals.loogle.score import score_answer, score_cloze
from evals.published import Published
from evals.rows import read_table
from evals.task import Sample
from evals.zeroscrolls import ZeroSCROLLS
from evals.zeroscrolls.score import SCORES as ZEROSCROLLS_SCORES
from tests.evals.conftest import Chat, Words, read_jsonl

GOLDEN = Path(__file__).parents[1] / "golden"
SETS: dict[str, Any] = {
    "infinitebench": InfiniteBench,
    "longbench_v2": LongBenchV2,
    "loogle": LooGLE,
    "zeroscrolls": ZeroSCROLLS,
}
NAMES = {"rouge-l": "rouge_l", "rouge-1": "rouge_1", "rouge-2": "rouge_2", "bleu1": "bleu_1", "bleu4": "bleu_4"}


def rate(benchmark: str, task: str, prediction: str, answer: Any) -> dict[str, float]:
    """Our scores of a golden case."""
    if benchmark == "infinitebench":
        return {"kvpress": SCORES[task](prediction, answer)}
    if benchmark == "longbench_v2":
        return {"kvpress": score(prediction, Sample("x", task, "", "", (answer,), 1))["kvpress"]}
    if task == "shortdep_cloze":
        return score_cloze(prediction, json.loads(answer))
    return score_answer(prediction, answer)


@pytest.mark.parametrize("benchmark", ["infinitebench", "longbench_v2", "loogle"])
def test_scores_are_kvpress(benchmark: str) -> None:
    cases = [case for case in read_jsonl(GOLDEN / "kvpress_scores.jsonl") if case["benchmark"] == benchmark]
    assert len(cases) > 10
    for case in cases:
        ours = rate(benchmark, case["task"], case["prediction"], case["answer"])
        theirs = {NAMES.get(name, name): value for name, value in case["scores"].items()}
        assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-300), case


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as the file's ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def place(folder: Path, benchmark: str, task: str) -> Path:
    """Where a set's rows lie in its folder."""
    names = {"longbench_v2": "data.jsonl", "zeroscrolls": f"{task}/validation.jsonl"}
    return folder / names.get(benchmark, f"{task}.jsonl")


PROMPTS = list(read_jsonl(GOLDEN / "kvpress_prompts.jsonl"))


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: f"{case['benchmark']}-{case['task']}")
def test_prompts_are_kvpress(case: dict[str, Any], tmp_path: Path, words: Words) -> None:
    write(place(tmp_path, case["benchmark"], case["task"]), [case["row"]])
    benchmark: Published = SETS[case["benchmark"]](str(tmp_path))
    (task,) = benchmark.tasks(words)
    (sample,) = task.samples
    (theirs,) = case["prompts"]
    assert task.name == case["task"]
    assert {name: getattr(sample, name) for name in theirs} == theirs
    assert sample.chat
    assert not sample.first_token_may_end
    assert benchmark.facts()["tasks"] == {case["task"]: 1}


def row(task: str, number: int = 0, **changed: Any) -> dict[str, Any]:
    (first, *_) = [case["row"] for case in PROMPTS if case["task"] == task]
    return {**first, **changed} if number == 0 else {**first, "context": f"Text {number}.", **changed}


def samples(benchmark: Published, tokenizer: Any, limit: int | None = None) -> list[Sample]:
    return [sample for task in benchmark.tasks(tokenizer, limit) for sample in task.samples]


@pytest.mark.parametrize(
    "name", ["passkey.jsonl", "passkey.json", "passkey.parquet", "passkey/test-00000-of-00001.parquet"]
)
def test_files_of_every_format_hold_the_same(name: str, tmp_path: Path, words: Words) -> None:
    write(tmp_path / name, [{**row("passkey", i), "options": [""]} for i in range(3)])
    found = samples(InfiniteBench(str(tmp_path)), words)
    assert [sample.id for sample in found] == ["passkey-0", "passkey-1", "passkey-2"]
    assert [sample.context[-11:].strip() for sample in found[1:]] == ["Text 1.", "Text 2."]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data/train-00000-of-00001.parquet"])
def test_longbench_v2_is_one_table_wherever_it_lies(name: str, tmp_path: Path, words: Words) -> None:
    path = write(tmp_path / name, [row("longbench_v2"), row("longbench_v2", 1)])
    for data in (path, tmp_path):
        assert len(samples(LongBenchV2(str(data)), words)) == 2


def test_json_lines_under_the_name_json_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n')
    assert [found["a"] for _, found in read_table(path, {"a": int})] == [1, 2]


def test_longbench_v2_by_length(tmp_path: Path, words: Words) -> None:
    rows = [row("longbench_v2", i, length=length) for i, length in enumerate(["short", "long", "short"])]
    write(tmp_path / "data.json", rows)
    tasks = {task.name: [s.id for s in task.samples] for task in LongBenchV2(str(tmp_path), by="length").tasks(words)}
    assert tasks == {"short": ["short-0", "short-1"], "long": ["long-0"]}
    (task,) = LongBenchV2(str(tmp_path), by="domain").tasks(words, 1)
    assert (task.name, len(task.samples)) == ("single-document_qa", 1)


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("The correct answer is (B)", 1),
        ("The correct answer is B.", 1),
        ("The correct answer is (A). No, The correct answer is (B).", 0),
        ("The correct answer is A, or: The correct answer is (B)", 1),
        ("The correct answer is (E)", 0),
        ("**The correct answer is** (B)", 1),
    ],
)
def test_longbench_v2s_own_score(prediction: str, right: int) -> None:
    assert official_score(prediction, "B") == right


def test_infinitebench_reads_numbers_as_numbers_or_texts(tmp_path: Path, words: Words) -> None:
    rows = [row("math_find", i, answer=answer) for i, answer in enumerate([[42], ["42"], [5.5], ["5.5"]])]
    write(tmp_path / "math_find.jsonl", rows)
    (task,) = InfiniteBench(str(tmp_path)).tasks(words)
    for sample, good, bad in zip(task.samples, ["42", "42", "5.5", "5.50"], ["43", "42.5", "5", "x"], strict=True):
        assert task.metric(good, sample) == {"kvpress": 1.0}
        assert task.metric(bad, sample) == {"kvpress": 0.0}


def test_infinitebenchs_choices_are_scored_by_their_letter(tmp_path: Path, words: Words) -> None:
    write(tmp_path / "longbook_choice_eng.jsonl", [row("longbook_choice_eng")])
    (task,) = InfiniteBench(str(tmp_path)).tasks(words)
    (sample,) = task.samples
    assert sample.references == ("D",)
    assert [task.metric(text, sample)["kvpress"] for text in ("D", "Light housework", "A")] == [1, 1, 0]


def test_a_number_of_ten_thousand_digits_is_only_wrong() -> None:
    assert SCORES["math_calc"]("1 " + "9" * 10_000, [1, 4]) == 0.5
    assert SCORES["code_run"]("9" * 10_000, [1]) == 0.0


OLD = {"input": "A long document.", "title": "T", "output": "none"}


@pytest.mark.parametrize("written", [list, str])
def test_loogles_first_release_is_read_too(written: Any, tmp_path: Path, words: Words) -> None:
    pairs = [{"Q": "Who?", "A": "Ann", "S": ["x"]}, {"Q": "When?", "A": 1984}]
    write(tmp_path / "shortdep_qa.jsonl", [{**OLD, "qa_pairs": written(pairs)}, {**OLD, "qa_pairs": "None"}])
    write(
        tmp_path / "shortdep_cloze.jsonl",
        [{**OLD, "qa_pairs": written([{"Q": "<mask-0> met", "A": {"<mask-0>": "Ann"}}])}],
    )
    write(tmp_path / "longdep_summarization.jsonl", [{**OLD, "qa_pairs": "none", "output": "A summary."}])
    found = samples(LooGLE(str(tmp_path)), words)
    assert [(s.task, s.references) for s in found] == [
        ("shortdep_qa", ("Ann",)),
        ("shortdep_qa", ("1984",)),
        ("shortdep_cloze", ("Ann",)),
        ("longdep_summarization", ("A summary.",)),
    ]
    assert found[0].context == found[1].context
    assert (found[0].question, found[3].question) == ("\nQuestion: Who?\n", "\n")


def test_loogles_masks_are_scored_by_name(tmp_path: Path, words: Words) -> None:
    write(tmp_path / "shortdep_cloze.jsonl", [row("shortdep_cloze")])
    (task,) = LooGLE(str(tmp_path)).tasks(words)
    scores = task.metric("{'<mask-0>': 'Tänk', '<mask-1>': 'Peg'}", task.samples[0])
    assert scores == {"exact_match": 0.5, "partial_match": 0.5}


def test_zeroscrolls_rows_of_one_question_are_one_sample(tmp_path: Path, words: Words) -> None:
    rows = [row("qasper", id=name, output=output) for name, output in [("a", "Oslo"), ("b", "x"), ("a", "in Oslo")]]
    write(tmp_path / "qasper" / "validation.jsonl", rows)
    write(tmp_path / "qasper" / "test.jsonl", [row("qasper", output=None)])
    (task,) = ZeroSCROLLS(str(tmp_path)).tasks(words)
    assert [sample.references for sample in task.samples] == [("Oslo", "in Oslo"), ("x",)]
    assert task.metric("in Oslo", task.samples[0]) == {"f1": 1.0}
    with pytest.raises(
        ValueError, match=r"line 1 has no answer in 'output': .* benchmark\.split=validation has answers"
    ):
        list(ZeroSCROLLS(str(tmp_path), split="test").tasks(words))


@pytest.mark.parametrize(
    ("metric", "prediction", "references", "expected"),
    [
        ("accuracy", "(B) because A", ["(B) Oslo"], 1),
        ("accuracy", "because", ["(B) Oslo"], 0),
        ("accuracy", "Apples, C", ["C"], 1),
        ("exp_similarity", "About 60%.", ["70%"], 0.5),
        ("exp_similarity", "62.5% or 70%", ["70%"], 0.5**0.75),
        ("exp_similarity", "seventy", ["70%"], 0),
        ("exp_similarity", "90%", ["70%", "85%"], 0.5**0.5),
        ("concordance", "1, 2, 3, 4", ["1, 2, 3, 4"], 1),
        ("concordance", "4 3 2 1", ["1, 2, 3, 4"], 0),
        ("concordance", "The order is 2, 1, 3, 4.", ["1, 2, 3, 4"], 5 / 6),
        ("concordance", "1, 2, 3", ["1, 2, 3, 4"], 0),
        ("concordance", "1, 2, 2, 4", ["1, 2, 3, 4"], 0),
        ("f1", "the city of Oslo", ["Oslo", "Bergen"], 0.5),
        ("rouge", "cats sat down", ["the cat sat"], 0.5 ** (1 / 3) * (2 / 3) ** (2 / 3)),
        ("rouge", "nothing", ["the cat sat"], 0),
    ],
)
def test_zeroscrolls_scores_worked_out_by_hand(
    metric: str, prediction: str, references: list[str], expected: float
) -> None:
    """cats sat down | the cat sat: two of three words (stemmed), one of two pairs, a common sequence of two."""
    scores = ZEROSCROLLS_SCORES[metric](prediction, references)
    assert next(iter(scores)) == metric
    assert scores[metric] == pytest.approx(expected)


def test_questions_on_one_context_keep_one_context(tmp_path: Path) -> None:
    pairs = [{"Q": "Who " * n + "?", "A": "Ann"} for n in (1, 120, 1)]
    write(tmp_path / "shortdep_qa.jsonl", [{**OLD, "input": "many words " * 800, "qa_pairs": pairs}])
    tokenizer = Chat(900, 10)
    first, longest, last = samples(LooGLE(str(tmp_path)), tokenizer)
    assert first.context == longest.context == last.context
    used = len(tokenizer.encode(longest.context + longest.question + longest.answer_prefix)) + longest.max_new_tokens
    assert 900 - 80 <= used <= 900 - 10
    (alone,) = samples(LooGLE(str(tmp_path)), tokenizer, limit=1)
    assert alone == first
    (fixed, *_) = samples(LooGLE(str(tmp_path), max_length=100), tokenizer)
    assert len(tokenizer.encode(fixed.context, add_special_tokens=False)) == 100


def test_a_task_that_does_not_fit_is_left_out_or_refused(tmp_path: Path) -> None:
    for name in ("passkey", "math_calc"):
        write(tmp_path / f"{name}.jsonl", [row(name)])
    tokenizer = Chat(4096, 10)
    benchmark = InfiniteBench(str(tmp_path))
    assert [task.name for task in benchmark.tasks(tokenizer)] == ["passkey"]
    assert "4096 tokens leave no room" in benchmark.facts()["left_out"]["math_calc"]
    assert benchmark.facts()["left_out"]["kv_retrieval"] == f"benchmark.data={tmp_path} has no file of it"
    with pytest.raises(ValueError, match="math_calc: the model's 4096 tokens leave no room for a context"):
        list(InfiniteBench(str(tmp_path), tasks="math_calc").tasks(tokenizer))


def test_question_aware_compresses_the_question(tmp_path: Path, words: Words) -> None:
    write(tmp_path / "passkey.jsonl", [row("passkey")])
    (plain,) = samples(InfiniteBench(str(tmp_path)), words)
    benchmark = InfiniteBench(str(tmp_path), question_aware=True)
    (aware,) = samples(benchmark, words)
    assert (aware.context, aware.question) == (plain.context + plain.question, "")
    assert benchmark.facts()["protocol"] != InfiniteBench().facts()["protocol"]  # never in one table


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("passkey", {"answer": []}, "'answer' must be a list of strings, at least one"),
    ("passkey", {"answer": [" "]}, "'answer' holds an empty answer"),
    ("passkey", {"context": 3}, "'context' is an integer, expected a string"),
    ("code_run", {"input": "what does it return"}, "'input' has no call such as func_1"),
    ("code_run", {"answer": ["x"]}, "'answer' must hold numbers"),
    ("math_find", {"input": "Which number?"}, "'input' has no 'The ... of'"),
    ("code_debug", {"options": ["a", "b", "c"]}, "'options' must be four texts"),
    ("code_debug", {"answer": ["e"]}, "'answer' 'e' is none of its 'options'"),
    ("longbench_v2", {"answer": "E"}, "'answer' is 'E', one of A, B, C, D is expected"),
    ("longbench_v2", {"choice_C": None}, "'choice_C' is null, expected a string"),
    ("shortdep_qa", {"answer": ""}, "'answer' holds an empty answer"),
    ("shortdep_qa", {"question": 1}, "'question' is an integer"),
    ("shortdep_qa", {"input": "x", "qa_pairs": [{"Q": "?"}]}, "'qa_pairs' must be a list of objects with 'Q' and 'A'"),
    ("shortdep_qa", {"input": "x", "qa_pairs": "[1"}, "'qa_pairs' is not the text of a list"),
    ("shortdep_cloze", {"answer": "Ann"}, "the answer must be a list of entities"),
    ("shortdep_cloze", {"answer": []}, "the answer must be a list of entities"),
    ("qasper", {"output": ""}, "has no answer in 'output'"),
    ("qasper", {"id": "b", "query_end_index": 10**6}, "are no places in an 'input' of"),
    ("qasper", {"document_end_index": "3"}, "'document_end_index' is a string, expected an integer"),
]


@pytest.mark.parametrize(("task", "changed", "says"), REFUSED)
def test_bad_rows_are_refused_by_file_and_line(
    task: str, changed: dict[str, Any], says: str, tmp_path: Path, words: Words
) -> None:
    (benchmark, *_) = [case["benchmark"] for case in PROMPTS if case["task"] == task]
    path = write(place(tmp_path, benchmark, task), [row(task), row(task, **changed)])
    with pytest.raises(ValueError, match="line 2") as error:
        samples(SETS[benchmark](str(tmp_path)), words)
    assert says in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("benchmark", SETS)
def test_missing_columns_and_files_are_one_line(benchmark: str, tmp_path: Path, words: Words) -> None:
    (task, *_) = [case["task"] for case in PROMPTS if case["benchmark"] == benchmark]
    with pytest.raises(FileNotFoundError, match=f"has no file of {SETS[benchmark](str(tmp_path)).title} "):
        samples(SETS[benchmark](str(tmp_path)), words)
    with pytest.raises(FileNotFoundError, match=r"is missing: a folder of .*docs/benchmarks-list\.md"):
        samples(SETS[benchmark](str(tmp_path / "none")), words)
    path = write(place(tmp_path, benchmark, task), [{"text": "x", "label": "y"}])
    with pytest.raises(ValueError, match=r"line 1 has no '\w+'; it has: label, text") as error:
        samples(SETS[benchmark](str(tmp_path)), words)
    path.write_bytes(b"{broken\n")
    with pytest.raises(ValueError, match="line 1 is not JSON") as error:
        samples(SETS[benchmark](str(tmp_path)), words)
    assert "\n" not in str(error.value)


def test_a_named_task_without_its_file_is_refused(tmp_path: Path, words: Words) -> None:
    write(tmp_path / "passkey.jsonl", [row("passkey")])
    with pytest.raises(
        FileNotFoundError, match=r"has no file of kv_retrieval; get it, or set benchmark\.tasks=available"
    ):
        samples(InfiniteBench(str(tmp_path), tasks=["passkey", "kv_retrieval"]), words)


def test_files_that_would_count_twice_are_refused(tmp_path: Path, words: Words) -> None:
    write(tmp_path / "passkey.jsonl", [row("passkey")])
    write(tmp_path / "passkey.json", [row("passkey")])
    with pytest.raises(ValueError, match="are one file in two formats"):
        samples(InfiniteBench(str(tmp_path)), words)
    (tmp_path / "passkey.json").unlink()
    write(tmp_path / "passkey" / "test.jsonl", [row("passkey")])
    with pytest.raises(ValueError, match="both hold passkey: samples would count twice"):
        samples(InfiniteBench(str(tmp_path)), words)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: InfiniteBench(tasks=["paskey"]), "no InfiniteBench task 'paskey'. Did you mean 'passkey'?"),
        (lambda: InfiniteBench(tasks="longbook_sum_eng"), "no InfiniteBench task 'longbook_sum_eng'"),
        (lambda: LooGLE(max_length=1), "must be auto or a number of tokens, at least 2"),
        (lambda: LongBenchV2(by="size"), "benchmark.by=size: choose difficulty, length, domain or null"),
        (lambda: ZeroSCROLLS(split="train"), "benchmark.split=train: choose validation or test"),
    ],
)
def test_wrong_settings_are_one_line(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match="benchmark") as error:
        make()
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_come_from_the_hub(tmp_path: Path, words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def download(name: str, file: str) -> Path:
        asked.append((name, file))
        if not file.endswith(".zip"):
            return write(tmp_path / file, [row("longbench_v2" if file == "data.json" else "passkey")])
        path = write(tmp_path / "validation.jsonl", [row("qasper")])
        with zipfile.ZipFile(tmp_path / file, "w") as archive:
            archive.write(path, "qasper/validation.jsonl")
        return tmp_path / file

    def load_split(*where: Any) -> Any:
        asked.append(where[:3])
        return [("place", row("shortdep_qa"))]

    monkeypatch.setattr(hub, "download", download)
    monkeypatch.setattr(hub, "load_split", load_split)
    benchmarks = [
        LongBenchV2(),
        InfiniteBench(tasks="passkey"),
        LooGLE(tasks=["shortdep_qa", "longdep_summarization"]),
        ZeroSCROLLS(tasks="qasper"),
    ]
    assert [len(samples(benchmark, words)) for benchmark in benchmarks] == [1, 1, 2, 1]
    assert asked == [
        ("THUDM/LongBench-v2", "data.json"),
        ("xinrongzhang2022/InfiniteBench", "passkey.jsonl"),
        ("bigainlco/LooGLE", "shortdep_qa", "test"),
        ("bigainlco/LooGLE", "summarization", "test"),
        ("tau/zero_scrolls", "qasper.zip"),
    ]
    with pytest.raises(FileNotFoundError, match=r"its qasper\.zip has no test\.jsonl"):
        samples(ZeroSCROLLS(tasks="qasper", split="test"), words)


def test_a_split_of_the_hub_is_checked_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lukv.checkpoint.hub_answers", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", lambda name, part, split: [{"a": 1}, {"a": f"{name} {part} {split}"}])
    with pytest.raises(ValueError, match="x/y small row 1: 'a' is an integer, expected a string"):
        hub.load_split("x/y", "small", "test", {"a": str})
    assert hub.load_split("x/y", "small", "test", {})[1] == ("x/y small row 2", {"a": "x/y small test"})


@pytest.mark.parametrize("benchmark", SETS)
def test_no_network_is_one_line(benchmark: str, words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> str:
        raise ConnectionError("no route to the hub\nand a second line")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("datasets.load_dataset", refuse)
    for answers, says in ((True, "the hub says: no route to the hub; get its files"), (False, "the hub")):
        monkeypatch.setattr("lukv.checkpoint.hub_answers", lambda answers=answers: answers)
        with pytest.raises(FileNotFoundError, match=says) as error:
            samples(SETS[benchmark](), words)
        assert "\n" not in str(error.value)
