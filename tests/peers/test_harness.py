"""lm-evaluation-harness on compressed prompts, in an environment of its own: two tiny tasks of ours, one of its own."""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest
import yaml

from baselines.snapkv import SnapKV
from lukv.allocation import Budget, Uniform
from lukv.backend.generate import answer, compress
from lukv.model import load
from lukv.selection import Eviction, Protection
from tests.peers.conftest import HERE

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1800)]

ROOT = HERE.parents[1]
PYTHON = Path(os.environ.get("LUKV_HARNESS_PYTHON", ROOT / ".venv-harness" / "bin" / "python"))
TINY = ROOT / "models" / "tiny"
NEW_TOKENS, KEPT = 16, 0.3
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(*command: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is not there: make it with `make test-peers`")
    environment = {**os.environ, **ENVIRONMENT, "HF_HOME": str(home)}
    return subprocess.run([PYTHON, *command], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def prompts() -> list[tuple[str, str]]:
    """Prompts of different lengths with the number that each hides."""
    draw = random.Random(0)
    found = []
    for around in (20, 12, 16, 8, 20, 4):
        number = str(draw.randint(10**6, 10**7))
        text = "The grass is green. " * around + f"One of the special magic numbers for tree is: {number}. "
        text += "The sun is yellow. Here we go. " * around
        found.append((f"{text}\nThe special magic number for tree mentioned in the provided text is:", number))
    return found


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, prompts: list[tuple[str, str]]) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "data.jsonl"
    rows = [{"prompt": prompt, "number": number, "other": "1234567"} for prompt, number in prompts]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
    }
    generation = {"until": [".", "\n"], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    match = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    needle = {"task": "needle", "output_type": "generate_until", "doc_to_target": " {{number}}"}
    needle |= {"generation_kwargs": generation, "metric_list": [match]}
    choice = {"task": "choice", "output_type": "multiple_choice", "doc_to_choice": "{{[number, other]}}"}
    for task in (needle, {**choice, "doc_to_target": 0}):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**common, **task}))
    return folder


@pytest.fixture(scope="module")
def results(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    home = tmp_path_factory.mktemp("harness")
    done = run(HERE / "run_harness.py", tasks, home / "results.json", home=home)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((home / "results.json").read_text())


def test_the_full_cache_answers_as_the_harnesss_own_model(results: dict) -> None:
    assert results["full"]["answers"] == results["stock"]["answers"] == results["by_path"]["answers"]
    assert len(set(results["stock"]["answers"])) > 1
    assert results["full"]["score"] == results["stock"]["score"]


def answer_by_itself(prompt: str, new_tokens: int) -> str:
    """SnapKV's answer by the backend: the prompt compressed but for its last token."""
    model = load(TINY, dtype="float32", device="cpu")
    ids = [model.tokenizer.bos_token_id, *model.text_ids(prompt)]
    eviction = Eviction(SnapKV(), Uniform(), Protection(), Budget(share=KEPT))
    cache = compress(model, [ids[:-1]], eviction=eviction)
    return model.decode(answer(model, cache, [ids[-1:]], new_tokens, model.eos_ids).tokens[0])


def test_answers_are_those_of_the_backend(results: dict, prompts: list[tuple[str, str]]) -> None:
    expected = [answer_by_itself(prompt, NEW_TOKENS).split(".")[0].split("\n")[0] for prompt, _ in prompts]
    assert results["snapkv"]["answers"] == expected
    assert expected != results["full"]["answers"]


def test_a_task_of_the_harness(tmp_path: Path) -> None:
    """RULER as it comes with the harness. This one of its tasks needs no data from elsewhere: it repeats a sentence."""
    command = ("-m", "evals.harness", "--model", "lukv", "--tasks", "niah_single_1", "--limit", "2", "--log_samples")
    arguments = f"pretrained={TINY},method=snapkv,budget={KEPT},model.dtype=float32"
    done = run(*command, "--model_args", arguments, "--output_path", str(tmp_path / "out"), home=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("samples_niah_single_1_*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(samples) == 2
    for sample in samples:
        prompt, settings = sample["arguments"]["gen_args_0"].values()
        said, numbers = sample["resps"][0][0], sample["doc"]["outputs"]
        assert said == answer_by_itself(prompt, settings["max_gen_toks"])
        assert sample["4096"] == sum(number in said for number in numbers) / len(numbers)
    (file,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(file.read_text())["config"]["lukv"]["kept_share"] == pytest.approx(KEPT, abs=0.01)


def test_results_say_what_was_kept(results: dict) -> None:
    says = results["snapkv"]["says"]
    assert (says["method"], says["budget"], says["scorer"], says["allocator"]) == ("snapkv", 0.3, "snapkv", "uniform")
    assert says["kept_share"] == pytest.approx(KEPT, abs=0.01)
    assert results["lukv"]["says"]["allocator"] == "budget_table"
    assert results["full"]["says"]["kept_share"] == 1


def test_likelihoods_are_refused_with_the_reason(results: dict) -> None:
    assert "generate_until requests only" in results["refused"]


def test_as_typed(tasks: Path, tmp_path: Path) -> None:
    command = ("-m", "evals.harness", "--model", "lukv", "--tasks", "needle", "--include_path", str(tasks))
    out = ("--limit", "2", "--output_path", str(tmp_path / "out"))
    done = run(*command, *out, "--model_args", "pretrained=tiny,method=snapkv,budget=0.3", home=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(file.read_text())["config"]["lukv"]["method"] == "snapkv"
    wrong = {
        "pretrained=tiny,method=snapkw,budget=0.3": "lm_eval: no method named 'snapkw'. Did you mean 'snapkv'?",
        "pretrained=no/such/folder,method=snapkv": "no/such/folder",
    }
    for arguments, said in wrong.items():
        done = run(*command, "--model_args", arguments, home=tmp_path)
        assert done.returncode == 2, done.stderr[-3000:]
        assert said in done.stderr.strip().splitlines()[-1]
        assert "Traceback" not in done.stderr
