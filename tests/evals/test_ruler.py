"""RULER as a benchmark: what runs without foreign texts, what is refused, what stays the same."""

from __future__ import annotations

import json
import re
import shutil
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.ruler import Ruler
from evals.ruler.generator import Generator, Prompt, Unfit
from evals.ruler.suite import RULER, STAND_INS, TASKS
from evals.ruler.words import SortedPairs, common_words, needle_words
from evals.task import Sample, Tokenizer, count_tokens
from tests.evals.conftest import Chat, Words

NO_SOURCES = {"niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery", "qa_1", "qa_2"}


def test_available_names_what_it_leaves_out(words: Words) -> None:
    benchmark = Ruler(length=1024)
    tasks = list(benchmark.tasks(words, limit=2))
    facts = benchmark.facts()
    names = [task.name for task in tasks]
    assert set(facts["left_out"]) == NO_SOURCES
    assert set(names) & set(RULER) == set(RULER) - NO_SOURCES
    assert facts["not_rulers"] == [name for name in names if name in STAND_INS]
    assert "niah_multivalue_noise" in names
    assert "niah_multivalue_prose" in names
    assert "vt_plain" not in names
    json.dumps(facts)


def test_tasks_that_do_not_fit_are_left_out_with_the_reason(words: Words) -> None:
    benchmark = Ruler(length=512)
    names = [task.name for task in benchmark.tasks(words, limit=1)]
    assert "vt" not in names
    assert "vt_plain" in names
    assert "does not fit into 512 tokens" in benchmark.facts()["left_out"]["vt"]


@pytest.mark.parametrize("ruler_version", [2024, 2025])
@pytest.mark.parametrize("task", sorted(set(TASKS) - NO_SOURCES))
def test_samples(task: str, ruler_version: int, words: Words) -> None:
    length = 1100
    (made,) = Ruler(length=length, tasks=[task], ruler_version=ruler_version).tasks(words, limit=3)
    assert len(made.samples) == 3
    assert len({sample.id for sample in made.samples}) == 3
    for sample in made.samples:
        text = sample.context + sample.question + sample.answer_prefix
        surplus = 50 if task == "fwe" and ruler_version == 2024 else 4 if task == "vt" and ruler_version == 2024 else 0
        assert count_tokens(words, text) + sample.max_new_tokens <= length + surplus
        assert all(answer in sample.context for answer in sample.references)
        assert sample.references
        assert made.metric(" ".join(sample.references), sample) == {"official": 1.0, "kvpress": 1.0}
        assert made.metric("", sample)["official"] == 0.0
        if task.startswith("niah"):
            needles = re.findall(r"special magic \w+ for (\S+) is: (\S+)\.", sample.context)
            values = dict.fromkeys(key for key, _ in needles)
            assert (
                len(values) > 1
                or task.endswith(("single_1", "single_2_prose", "3_noise", "3_prose"))
                or "value" in task
            )
            asked = [value for key, value in needles if key in sample.question]
            assert sorted(asked) == sorted(sample.references)


def test_sample_i_does_not_depend_on_the_limit(words: Words) -> None:
    for task in ("niah_multikey_2", "vt", "cwe", "fwe", "niah_multiquery_prose"):
        few, many = (next(Ruler(length=1024, tasks=[task]).tasks(words, limit)).samples for limit in (2, 5))
        assert list(few) == list(many)[:2]


def test_one_answer_of_several_is_enough_in_questions_only() -> None:
    sample = Sample("x", "x", "", "", ("Paris", "Paris, France", "Lutetia"), 8)
    for family, score in (("qa", 1.0), ("niah", 1 / 3), ("vt", 1 / 3), ("cwe", 1 / 3), ("fwe", 1 / 3)):
        assert Ruler().metric(family)("in paris", sample) == {"official": score, "kvpress": score}


class Lines(Generator):
    """10 tokens a unit, and nothing else: what is measured is how samples are sized."""

    step = 1

    def probe(self, units: int) -> int:
        return 10 * units

    def draw(self, units: int, index: int) -> Prompt:
        return Prompt("", ("x",), 10 * units + self.tokens_to_generate, units)


@pytest.mark.parametrize(("ruler_version", "extra", "units"), [(2024, 0, 5), (2024, 9, 5), (2025, 0, 5), (2025, 9, 5)])
def test_a_sample_may_have_exactly_the_limit(ruler_version: int, extra: int, units: int) -> None:
    """5 units and 4 tokens to generate are 54 tokens. 2024 goes one step too far there, and every sample steps back."""
    lines = Lines("x", 54 + extra, 4, len, ruler_version)
    assert [prompt.units for prompt in islice(lines.samples(), 3)] == [units] * 3
    with pytest.raises(Unfit):
        next(Lines("x", 13, 4, len, ruler_version).samples())
    assert next(Lines("x", 14, 4, len, ruler_version).samples()).length == 14


def test_other_seed_other_samples(words: Words) -> None:
    one, other = (next(Ruler(1024, ["niah_single_1"], seed=seed).tasks(words, 3)).samples for seed in (42, 43))
    assert not {sample.references for sample in one} & {sample.references for sample in other}


def test_question_aware_moves_the_question_into_the_context(words: Words) -> None:
    apart, together = (
        next(Ruler(1024, ["vt"], question_aware=aware).tasks(words, 1)).samples[0] for aware in (False, True)
    )
    assert together.context == apart.context + apart.question
    assert together.question == ""
    assert together.answer_prefix == apart.answer_prefix


def test_scoring_puts_the_chosen_score_first(words: Words) -> None:
    (task,) = Ruler(1024, ["niah_single_1"], scoring="kvpress").tasks(words, 1)
    sample = task.samples[0]
    broken = sample.references[0][:3] + "\n" + sample.references[0][3:]
    assert list(task.metric(broken, sample).items()) == [("kvpress", 1.0), ("official", 0.0)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["niah_multkey_2"]}, "Did you mean 'niah_multikey_2'"),
        ({"tasks": "vtt"}, "Did you mean 'vt'"),
        ({"ruler_version": 2023}, "choose 2024 or 2025"),
        ({"scoring": "strict"}, "choose official or kvpress"),
        ({"length": 0}, "must be at least 1"),
        ({"samples": 0}, "must be at least 1"),
    ],
)
def test_wrong_settings_are_one_line(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Ruler(**settings)
    assert "\n" not in str(error.value)


def test_missing_sources_say_what_to_get_and_where_to_put_it(words: Words, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"benchmark\.sources=.* is not a folder"):
        Ruler(sources=str(tmp_path / "nowhere"))
    for sources in (None, str(tmp_path)):
        with pytest.raises(FileNotFoundError) as error:
            next(Ruler(tasks=["niah_multikey_1"], sources=sources).tasks(words, 1))
        message = str(error.value)
        assert "PaulGrahamEssays.json" in message
        assert "niah_multikey_1_noise" in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("qa_1", "squad.json", "version https://git-lfs", "is not JSON"),
        ("qa_1", "squad.json", '{"data": [{}]}', "lacks 'paragraphs'"),
        ("qa_2", "hotpotqa.json", '[{"context": 3}]', "is not HotpotQA's"),
        (
            "qa_2",
            "hotpotqa.json",
            '[{"question": "Who?", "answer": " ", "context": [["Ann", ["Ann lives."]]]}]',
            "is not HotpotQA's .*'Who\\?': 'answer' holds an empty answer",
        ),
        (
            "qa_1",
            "squad.json",
            json.dumps(
                {
                    "data": [
                        {
                            "paragraphs": [
                                {
                                    "context": "Ann lives.",
                                    "qas": [{"question": "Who?", "answers": [{"text": ""}], "is_impossible": False}],
                                }
                            ]
                        }
                    ]
                }
            ),
            r"squad\.json, 'Who\?': 'answers' holds an empty answer",
        ),
        ("niah_single_2", "PaulGrahamEssays.json", '["text"]', "should be"),
    ],
)
def test_broken_sources_are_named(
    task: str, name: str, content: str, message: str, words: Words, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "punkt_tab/english").mkdir(parents=True)
    with pytest.raises(ValueError, match=message):
        next(Ruler(tasks=[task], sources=str(tmp_path)).tasks(words, 1))


def squad(questions: int) -> dict:
    paragraphs = [
        {
            "context": f"Paragraph {number} tells of number {number}. " + "More words follow here. " * 5,
            "qas": [{"question": f"Which {number}?", "answers": [{"text": str(number)}], "is_impossible": False}],
        }
        for number in range(questions)
    ]
    return {"data": [{"paragraphs": paragraphs[: questions // 2]}, {"paragraphs": paragraphs[questions // 2 :]}]}


@pytest.mark.parametrize("ruler_version", [2024, 2025])
def test_questions_over_documents(ruler_version: int, words: Words, tmp_path: Path) -> None:
    (tmp_path / "squad.json").write_text(json.dumps(squad(30)))
    benchmark = Ruler(length=700, tasks=["qa_1"], ruler_version=ruler_version, sources=str(tmp_path))
    (task,) = benchmark.tasks(words, 12)
    for number, sample in enumerate(task.samples):
        assert sample.references == (str(number),)
        assert f"Paragraph {number} tells" in sample.context
        assert f"Which {number}?" in sample.question
    with pytest.raises(ValueError, match=r"has 30 questions; set benchmark\.samples=30"):
        list(benchmark.tasks(words, 31))


def test_prepared_samples_are_read_from_jsonl_and_parquet(words: Words, tmp_path: Path) -> None:
    (task,) = Ruler(1024, ["vt"]).tasks(words, 3)
    rows = [
        {
            "context": sample.context,
            "question": sample.question,
            "answer_prefix": sample.answer_prefix,
            "answer": list(sample.references),
            "task": "vt",
            "max_new_tokens": sample.max_new_tokens,
        }
        for sample in task.samples
    ]
    folder = tmp_path / "1024"
    folder.mkdir()
    (folder / "vt.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), tmp_path / "vt.parquet")
    for prepared in (str(tmp_path), str(tmp_path / "vt.parquet")):
        (read,) = Ruler(1024, prepared=prepared).tasks(words, 2)
        for sample, original in zip(read.samples, task.samples, strict=False):
            assert (sample.id, sample.context, sample.question, sample.answer_prefix, sample.references) == (
                original.id,
                original.context,
                original.question,
                original.answer_prefix,
                original.references,
            )
    with pytest.raises(ValueError, match="no RULER task cwe"):
        next(Ruler(1024, ["cwe"], prepared=str(tmp_path)).tasks(words, 1))
    shutil.copytree(folder, tmp_path / "512")  # another length: never mixed in, never taken instead
    (read,) = Ruler(1024, prepared=str(tmp_path)).tasks(words)
    assert len(read.samples) == len(rows)
    with pytest.raises(FileNotFoundError, match=r"has samples of length 512, 1024, not 4096"):
        next(Ruler(4096, prepared=str(tmp_path)).tasks(words))


def test_prepared_samples_that_are_not_there(words: Words, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is missing"):
        next(Ruler(prepared=str(tmp_path / "no.jsonl")).tasks(words, 1))
    with pytest.raises(FileNotFoundError, match=r"no \.jsonl or \.parquet file under"):
        next(Ruler(prepared=str(tmp_path)).tasks(words, 1))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="is not a parquet file"):
        next(Ruler(prepared=str(tmp_path / "broken.parquet")).tasks(words, 1))
    (tmp_path / "short.jsonl").write_text('{"context": "x"}')
    with pytest.raises(ValueError, match=r"short\.jsonl line 1 has no 'question'"):
        next(Ruler(prepared=str(tmp_path / "short.jsonl")).tasks(words, 1))
    (tmp_path / "blank.jsonl").write_text(json.dumps(prepared_row(answer=["7", " "])))
    with pytest.raises(ValueError, match=r"blank\.jsonl line 1: 'answer' holds an empty answer"):
        next(Ruler(prepared=str(tmp_path / "blank.jsonl")).tasks(words, 1))


def put(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    "hidden", [".ipynb_checkpoints/vt-checkpoint.jsonl", "._vt.jsonl", ".vt.parquet", ".cache/1024/vt.jsonl"]
)
@pytest.mark.parametrize("length", ["", "1024/"])
def test_hidden_files_are_not_data(hidden: str, length: str, words: Words, tmp_path: Path) -> None:
    rows = [prepared_row(i) for i in range(3)]
    put(tmp_path / length / "vt.jsonl", rows)
    put(tmp_path / length / hidden, rows)
    (task,) = Ruler(1024, prepared=str(tmp_path)).tasks(words)
    assert len(task.samples) == 3


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("vt.jsonl", "vt.parquet", "one file in two formats"),
        ("test.jsonl", "train.jsonl", "two splits of one data set"),
        ("test-00000-of-00001.parquet", "validation-00000-of-00001.parquet", "two splits of one data set"),
        ("vt/validation.jsonl", "vt/train.jsonl", "two splits of one data set"),
        ("test/vt.jsonl", "dev/vt.jsonl", "two splits of one data set"),
        ("vt.jsonl", "all.parquet", "is the same sample as"),
        ("vt.jsonl", "vt-Copy1.jsonl", "is the same sample as"),
        ("a/vt.jsonl", "b/vt.jsonl", "is the same sample as"),
    ],
)
@pytest.mark.parametrize("length", ["", "1024/"])
def test_twins_are_refused_by_both_names(
    one: str, other: str, message: str, length: str, words: Words, tmp_path: Path
) -> None:
    rows = [prepared_row(i) for i in range(3)]
    put(tmp_path / length / one, rows)
    put(tmp_path / length / other, rows[2:])
    with pytest.raises(ValueError, match=message) as error:
        list(Ruler(1024, prepared=str(tmp_path)).tasks(words))
    assert one in str(error.value)
    assert other in str(error.value)
    assert "\n" not in str(error.value)


def test_shards_and_files_of_other_samples_are_read_together(words: Words, tmp_path: Path) -> None:
    put(tmp_path / "vt/test-00000-of-00002.parquet", [prepared_row(0)])
    put(tmp_path / "vt/test-00001-of-00002.parquet", [prepared_row(1)])
    put(tmp_path / "cwe/test-00000-of-00001.parquet", [prepared_row(0, task="cwe")] * 2)  # twice in one file: as given
    tasks = {task.name: len(task.samples) for task in Ruler(1024, prepared=str(tmp_path)).tasks(words)}
    assert tasks == {"vt": 2, "cwe": 2}


def prepared_row(number: int = 0, **columns: object) -> dict:
    return {
        "context": f"Haystack {number}.",
        "question": "Which?",
        "answer_prefix": "It is",
        "answer": [str(number)],
        "task": "vt",
        "max_new_tokens": 8,
        **columns,
    }


def test_prompts_measured_by_the_models_own_tokenizer(bpe8k: Tokenizer) -> None:
    (task,) = Ruler(length=2048, tasks=["niah_single_1"]).tasks(bpe8k, 2)
    for sample in task.samples:
        text = sample.context + sample.question + sample.answer_prefix
        assert count_tokens(bpe8k, text) + 128 == sample.extra["length"] <= 2048


@pytest.mark.parametrize("ruler_version", [2024, 2025])
@pytest.mark.parametrize("template", [0, 7, 200])
@pytest.mark.parametrize("task", sorted(set(TASKS) - NO_SOURCES - {"vt_plain"}))
def test_samples_fill_a_models_window_beside_its_template(task: str, template: int, ruler_version: int) -> None:
    window = 1400
    benchmark = Ruler(length=window, tasks=[task], ruler_version=ruler_version)
    tokenizer = Chat(window, template)
    (made,) = benchmark.tasks(tokenizer, 3)
    for sample in made.samples:
        parts = (sample.context, sample.question, sample.answer_prefix)
        used = (
            sum(count_tokens(tokenizer, part) for part in parts) + 2 + template + sample.max_new_tokens
        )  # BOS, line end
        assert used <= window
    assert benchmark.facts()["made_for"][task] <= window - template


@pytest.mark.parametrize("window", [275, 335, 410, 485])
def test_fwe_of_2024_leaves_the_window_room_for_its_answer(window: int) -> None:
    """RULER does not subtract the 50 tokens to generate. In small windows a sample's steps are small too: it fills what
    it may, where at 1400 tokens a sample ends so far below that nothing shows."""
    tokenizer = Chat(window, 7)
    (made,) = Ruler(length=window, tasks=["fwe"]).tasks(tokenizer, 2)
    for sample in made.samples:
        parts = (sample.context, sample.question, sample.answer_prefix)
        used = sum(count_tokens(tokenizer, part) for part in parts) + 2 + 7 + sample.max_new_tokens
        assert window - 60 < used <= window


def test_where_the_window_is_large_enough_samples_are_rulers_own(words: Words) -> None:
    for task in ("niah_multikey_2", "vt", "fwe"):
        own = next(Ruler(1024, [task]).tasks(words, 2)).samples
        benchmark = Ruler(1024, [task])
        assert next(benchmark.tasks(Chat(1024 + 16 + 50 + 30, 30), 2)).samples == own
        assert benchmark.facts()["made_for"] == {}
        assert list(benchmark.tasks(Chat(1024 + 15 + 30, 30), 2))
        assert 0 < 1024 - benchmark.facts()["made_for"][task] <= 51


letters = st.text(alphabet="ab-", min_size=1, max_size=3)


@given(st.lists(letters, min_size=1, max_size=6), st.lists(letters, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_sorted_pairs_are_sorted_pairs(first: list[str], second: list[str]) -> None:
    pairs = SortedPairs(first, second)
    expected = sorted({f"{one}-{other}" for one in first for other in second})
    assert list(pairs) == expected
    assert pairs[-1] == expected[-1]
    assert pairs[1:3] == expected[1:3]
    with pytest.raises(IndexError):
        pairs[len(expected)]


def test_word_lists_are_those_of_wonderwords_2() -> None:
    assert len(needle_words()) == 6_175_260
    assert len(common_words()) == 8169
