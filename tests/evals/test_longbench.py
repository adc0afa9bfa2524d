"""LongBench against its own program: golden scores, prompts, cuts, buckets, and 21 published numbers."""

from __future__ import annotations

import json
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from evals.fit import cut_right
from evals.longbench import LongBench, score_predictions
from evals.longbench import data as data_module
from evals.longbench.catalog import CATALOG, ENGLISH
from evals.longbench.protocols import PROTOCOLS, cut_middle
from evals.longbench.score import Scorer, parse_classes
from evals.task import Tokenizer
from tests.evals.conftest import Chat, Words, golden, read_jsonl


@pytest.fixture(scope="module")
def rows(shared: Path) -> dict[tuple[str, str], dict[str, Any]]:
    files = {task: shared / f"data/longbench/{task}.jsonl" for task in CATALOG}
    return {(task, row["_id"]): row for task, path in files.items() for row in read_jsonl(path)}


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("task", CATALOG)
def test_golden_scores(task: str, shared: Path) -> None:
    cases = [case for case in golden("longbench_metrics.jsonl") if case["dataset"] == task]
    assert cases
    for case in cases:
        answers = [str(answer) for answer in case["answers"]]
        scores = Scorer(task)(case["prediction"], answers, case["all_classes"] or ())
        assert scores["official"] == case["score"], case["tag"]
        assert round(100 * scores["official"], 2) == case["score_pct"], case["tag"]
        assert round(100 * scores["kvpress"], 2) == case["score_kvpress_pct"], case["tag"]


@pytest.mark.parametrize("case", golden("longbench_prompts.jsonl"), ids=lambda case: case["dataset"])
def test_golden_prompts(case: dict[str, Any], rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    entry, row = CATALOG[case["dataset"]], rows[case["dataset"], case["_id"]]
    whole = PROTOCOLS["official"].pieces(entry, row)
    assert (digest(whole[0]), whole[1:]) == (case["official"]["sha256"], ("", ""))
    assert (entry.max_new_tokens, entry.chat) == (case["official"]["max_gen"], case["official"]["chat_template"])
    for name in ("kvpress", "defensivekv"):
        pieces = PROTOCOLS[name].pieces(entry, row)
        expected = case[name]
        assert digest(pieces[0]) == expected["context_sha256"]
        assert digest(pieces[1]) == expected["question_sha256"]
        assert pieces[2] == expected["answer_prefix"]
        assert entry.max_new_tokens + PROTOCOLS[name].more_tokens == expected["max_new_tokens"]
        assert ("".join(pieces) == whole[0]) == expected["concat_equals_official"]


@pytest.mark.parametrize(
    "case", golden("longbench_truncation.jsonl"), ids=lambda case: f"{case['dataset']}-{case['max_length']}"
)
def test_golden_cuts(case: dict[str, Any], rows: dict[tuple[str, str], dict[str, Any]], bpe8k: Tokenizer) -> None:
    row = rows[case["dataset"], case["_id"]]
    prompt = PROTOCOLS["official"].pieces(CATALOG[case["dataset"]], row)[0]
    cut = cut_middle(prompt, case["max_length"], bpe8k)
    assert digest(cut) == case["sha256"]
    assert (cut != prompt) == case["truncated"]
    assert len(bpe8k.encode(cut)) == case["retokenized"]


def write_log(path: Path, predictions: list[str], answers: list[list[str]], **columns: list[Any]) -> None:
    rows = [
        {"pred": prediction, "answers": answer, **{name: values[i] for name, values in columns.items()}}
        for i, (prediction, answer) in enumerate(zip(predictions, answers, strict=True))
    ]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")


def test_golden_buckets(shared: Path, tmp_path: Path) -> None:
    for case in json.loads((shared / "golden/longbench_e_buckets.json").read_text()):
        path = tmp_path / f"{case['dataset']}_e.jsonl"
        n = len(case["predictions"])
        write_log(
            path, case["predictions"], case["answers"], length=case["lengths"], all_classes=[case["all_classes"]] * n
        )
        scored = {each.task: each.scores["official"] for each in score_predictions(path, e=True)}
        expected = {f"{case['dataset']}_{name}": score for name, score in case["scores"].items() if score is not None}
        assert scored == expected, case["tag"]


def test_published_numbers(shared: Path) -> None:
    folder = shared / "data/longbench_preds/llama2-7b-chat"
    published = json.loads((folder / "result.json").read_text())
    scored = {each.task: each for each in score_predictions(folder)}
    for task, number in published.items():
        print(f"{task:22} published {number:6.2f}  ours {scored[task].scores['official']:6.2f}")
    assert {task: each.scores["official"] for task, each in scored.items()} == published
    assert len(published) == 21
    assert (scored["lcc"].scores["kvpress"], scored["repobench-p"].scores["kvpress"]) == (45.20, 41.84)
    assert {task for task, each in scored.items() if "rouge_score" in each.scores} == {
        "gov_report",
        "qmsum",
        "multi_news",
        "samsum",
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_tasks_make_samples(protocol: str, shared: Path, words: Words) -> None:
    benchmark = LongBench(str(shared / "data/longbench"), protocol=protocol, max_length=300)
    tasks = list(benchmark.tasks(words, limit=2))
    assert [task.name for task in tasks] == list(CATALOG)
    for task in tasks:
        entry = CATALOG[task.name]
        for sample in task.samples:
            assert sample.max_new_tokens == entry.max_new_tokens + (20 if protocol in ("kvpress", "lukv") else 0)
            assert sample.chat == (entry.chat or protocol == "kvpress" or (protocol == "lukv" and entry.chinese))
            assert sample.stop == (("\n",) if task.name == "samsum" and protocol not in ("kvpress", "lukv") else ())
            assert (sample.question == "") or protocol != "official"
            assert len(words.encode(sample.context)[: sample.context_tokens]) <= 302
            scores = task.metric(sample.references[0], sample)
            assert next(iter(scores)) == ("kvpress" if protocol == "kvpress" else "official")
            assert next(iter(scores.values())) > 0.19
    assert benchmark.facts()["left_out"] == {}


def write_rows(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def row(length: int = 100, **columns: Any) -> dict[str, Any]:
    return {
        "input": "Who?",
        "context": "A story.",
        "answers": ["Ann"],
        "length": length,
        "all_classes": None,
        **columns,
    }


def test_available_tasks_and_missing_ones(tmp_path: Path, words: Words) -> None:
    write_rows(tmp_path, "qasper", [row()] * 3)
    benchmark = LongBench(str(tmp_path))
    (task,) = benchmark.tasks(words)
    assert (task.name, len(task.samples)) == ("qasper", 3)
    assert len(benchmark.facts()["left_out"]) == 20
    with pytest.raises(FileNotFoundError, match=r"has no hotpotqa\.jsonl"):
        list(LongBench(str(tmp_path), tasks=["qasper", "hotpotqa"]).tasks(words))
    with pytest.raises(FileNotFoundError, match="has no file of a LongBench task"):
        list(LongBench(str(tmp_path), e=True).tasks(words))
    with pytest.raises(FileNotFoundError, match="is not a folder of LongBench"):
        list(LongBench(str(tmp_path / "none")).tasks(words))


def test_rows_without_any_answer_are_refused(tmp_path: Path, words: Words) -> None:
    write_rows(tmp_path, "qasper", [row(), row(answers=["", "Ann"]), row(answers=["", " "])])
    with pytest.raises(ValueError, match=r"qasper\.jsonl line 3: all its 'answers' are empty"):
        list(LongBench(str(tmp_path)).tasks(words))


def test_longbench_e_has_three_buckets(tmp_path: Path, words: Words) -> None:
    write_rows(tmp_path, "qasper_e", [row(3999), row(4000), row(9000), row(10)])
    tasks = {
        task.name: [sample.id for sample in task.samples] for task in LongBench(str(tmp_path), e=True).tasks(words)
    }
    assert tasks == {
        "qasper_0-4k": ["qasper_0-4k-0", "qasper_0-4k-3"],
        "qasper_4-8k": ["qasper_4-8k-1"],
        "qasper_8k+": ["qasper_8k+-2"],
    }


def test_the_last_rows_classes_judge_the_whole_file(tmp_path: Path, words: Words) -> None:
    rows = [row(answers=["A"], all_classes=["A"]), row(answers=["A"], all_classes=["A", "B"])]
    write_rows(tmp_path, "trec", rows)
    log = tmp_path / "predictions" / "trec.jsonl"
    log.parent.mkdir()
    write_log(log, ["A or B"] * 2, [["A"]] * 2, all_classes=[["A"], ["A", "B"]])
    for protocol, expected in (
        ("official", 0.5),
        ("agnostic", 0.5),
        ("kvpress", 1.0),
        ("lukv", 1.0),
        ("defensivekv", 1.0),
    ):
        (task,) = LongBench(str(tmp_path), protocol=protocol).tasks(words, limit=1)
        assert next(iter(task.metric("A or B", task.samples[0]).values())) == expected
        (scored,) = score_predictions(log, protocol)
        assert next(iter(scored.values.values()))[0] == expected


def test_rows_come_from_the_hubs_archive(tmp_path: Path, words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path, "lcc", [row(answers=["x = 1"])])
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(tmp_path / "lcc.jsonl", "data/lcc.jsonl")
    monkeypatch.setattr(data_module, "download", lambda name: str(tmp_path / "data.zip"))
    (task,) = LongBench("THUDM/LongBench").tasks(words)
    assert task.samples[0].context.startswith("Please complete the code")


def test_no_network_is_one_line(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> str:
        raise ConnectionError("no route to the hub\nand a second line")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(FileNotFoundError, match=r"the hub says: no route to the hub; get data\.zip") as error:
        list(LongBench().tasks(words))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "theirs"}, "choose official, agnostic, defensivekv, kvpress, lukv"),
        ({"tasks": ["qaspr"]}, "Did you mean 'qasper'"),
        ({"tasks": ["musique"], "e": True}, "no LongBench-E task 'musique'"),
        ({"max_length": 1}, "must be auto or a number of tokens, at least 2"),
        ({"max_length": "long"}, "must be auto or a number"),
    ],
)
def test_wrong_settings_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        LongBench(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'{"pred": "a", "answers": ["b"]}\n{"pred": "a"', "line 2 is not JSON"),
        (b'{"pred": "a"}', "line 1 has no 'answers'"),
        (b'{"pred": 3, "answers": ["b"]}', "line 1: 'pred' is an integer"),
        (b'{"pred": "a", "answers": []}', "line 1: 'answers' must be a list of strings"),
        (b'{"pred": "\xff", "answers": ["b"]}', "line 1 is not UTF-8"),
        (b"[1]", "line 1 is a list"),
    ],
)
def test_broken_logs_are_reported_by_file_and_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "qasper.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        score_predictions(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_logs_must_be_named_after_a_task(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"pred": "a", "answers": ["b"]}')
    with pytest.raises(ValueError, match="its name must be that of a LongBench task"):
        score_predictions(tmp_path / "mine.jsonl")
    with pytest.raises(FileNotFoundError, match="no file named after a LongBench task"):
        score_predictions(tmp_path)
    with pytest.raises(FileNotFoundError, match="is missing"):
        score_predictions(tmp_path / "qasper.jsonl")
    with pytest.raises(ValueError, match="choose official"):
        score_predictions(tmp_path, protocol="mine")


def test_hidden_predictions_are_left_out_and_two_files_of_a_task_refused(tmp_path: Path) -> None:
    log = '{"pred": "a", "answers": ["a"], "length": 3}'
    for name in ("qasper", ".qasper", "._qasper", "trec_e", ".ipynb_checkpoints/qasper"):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(log)
    assert [scored.task for scored in score_predictions(tmp_path)] == ["qasper", "trec"]
    (tmp_path / "qasper_e.jsonl").write_text(log)
    with pytest.raises(ValueError, match=r"qasper\.jsonl and .*qasper_e\.jsonl are predictions of one task"):
        score_predictions(tmp_path)


@pytest.mark.parametrize(
    ("protocol", "ends"), [("official", True), ("defensivekv", True), ("kvpress", False), ("lukv", False)]
)
def test_samsum_ends_at_a_line_end_after_its_first_token(
    protocol: str, ends: bool, tmp_path: Path, words: Words
) -> None:
    """pred.py: the line end is an end of text token and min_length is one more than the prompt's; only for samsum."""
    for name in ("samsum", "trec", "qasper"):
        write_rows(tmp_path, name, [row(all_classes=["Ann"])])
    samples = {task.name: task.samples[0] for task in LongBench(str(tmp_path), protocol=protocol).tasks(words)}
    assert (samples["samsum"].stop, samples["samsum"].min_new_tokens) == ((("\n",), 1) if ends else ((), 0))
    for name in ("trec", "qasper"):
        assert (samples[name].stop, samples[name].min_new_tokens) == ((), 0)


def test_hidden_rows_are_not_tasks(tmp_path: Path, words: Words) -> None:
    write_rows(tmp_path, "qasper", [row()])
    for name in (".trec", ".ipynb_checkpoints/trec", "qasper-checkpoint"):
        write_rows((tmp_path / name).parent, Path(name).name, [row()])
    assert [(task.name, len(task.samples)) for task in LongBench(str(tmp_path)).tasks(words)] == [("qasper", 1)]


def test_classes_written_as_text_are_read_without_evaluating_them() -> None:
    assert parse_classes("['Food', \"Children's\", 'Order, rank']", "x") == ("Food", "Children's", "Order, rank")
    assert parse_classes(None, "x") == ()
    with pytest.raises(ValueError, match="must be a list of strings"):
        parse_classes([1], "x")


def test_catalog_is_longbenchs() -> None:
    assert len(CATALOG) == 21
    assert len(ENGLISH) == 16
    assert sum(entry.in_e for entry in CATALOG.values()) == 13
    assert sum(not entry.chat for entry in CATALOG.values()) == 6


FITTED = [name for name, protocol in PROTOCOLS.items() if protocol.cut]
"""The protocols that cut texts to the model's window. The other one cuts at what the tokenizer's files state."""


class SmallWindow(Words):
    model_max_length = 500


@pytest.mark.parametrize("protocol", FITTED)
def test_auto_length_leaves_room_for_question_and_answer(protocol: str, tmp_path: Path) -> None:
    write_rows(tmp_path, "qasper", [row(context="many words " * 500, input="What is it?")])
    tokenizer = SmallWindow()
    (task,) = LongBench(str(tmp_path), protocol=protocol, tasks=["qasper"], max_length="auto").tasks(Words())
    whole = len(Words().encode(task.samples[0].context))
    assert whole > 1000
    for window in (500, 400):
        tokenizer.model_max_length = window
        (task,) = LongBench(str(tmp_path), protocol=protocol).tasks(tokenizer)
        (sample,) = task.samples
        used = len(tokenizer.encode(sample.context + sample.question + sample.answer_prefix)) + sample.max_new_tokens
        assert window - 80 <= used <= window - 60
    tokenizer.model_max_length = 150
    with pytest.raises(ValueError, match="no room for a context"):
        list(LongBench(str(tmp_path), protocol=protocol).tasks(tokenizer))


@pytest.mark.parametrize("template", [0, 40, 60, 100, 300])
@pytest.mark.parametrize("protocol", FITTED)
def test_auto_length_leaves_room_for_the_chat_template(protocol: str, template: int, tmp_path: Path) -> None:
    for name in ("qasper", "trec"):  # with a template, and in two protocols without
        write_rows(tmp_path, name, [row(context="many words " * 500, input="What is it?", all_classes=["Ann"])])
    tokenizer = Chat(700, template)
    for task in LongBench(str(tmp_path), protocol=protocol).tasks(tokenizer):
        (sample,) = task.samples
        text = sample.context + sample.question + sample.answer_prefix
        around = template if sample.chat else 0
        used = len(tokenizer.encode(text)) + around + sample.max_new_tokens
        assert 700 - 80 <= used <= 700
        if around <= 40:  # as before there were templates of other lengths
            assert used - around >= 700 - 80


def test_cuts_keep_short_texts_and_the_right_ends(words: Words) -> None:
    text = "one two three four five six"
    assert cut_middle(text, 7, words) == text
    assert cut_middle(text, 4, words) == "one five six"
    assert cut_middle(text, 5, words) == "one five six"  # an odd length: 2 tokens of each end, BOS the first
    assert cut_middle(text, 6, words) == "one two four five six"
    assert cut_right(text, 2, words) == "one two"
    assert cut_right(text, 6, words) == text
