"""A wrong name, type or value: one line saying what, what is allowed, the nearest; exit code 2; nothing written."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.as_typed import Command, process

BAD = [
    ("method=lukw", "no method named 'lukw'. Did you mean 'lukv'? Known: "),
    ("-m method=lukv,lukw", "no method named 'lukw'"),
    ("-m method=glob(zz*)", "matches no method"),
    ("method=null", "no method named 'null'"),
    ("scorer=snapk", "Did you mean 'snapkv'?"),
    ("allocator=unifrom", "Did you mean 'uniform'?"),
    ("model=tinny", "Did you mean 'tiny'?"),
    ("cluster=slrm", "Did you mean 'slurm'?"),
    ("experiment=nope", "no experiment named 'nope'. Known: "),
    ("budgt=0.3", "no setting named 'budgt'. Did you mean 'budget'?"),
    ("metod=lukv", "Did you mean 'method'?"),
    ("model.nam=x", "Did you mean 'model.name'?"),
    ("method=snapkv scorer.windw=3", "Did you mean 'scorer.window'?"),
    ("model.max_length=9", "no setting named 'model.max_length'. model has check, device, device_map, dtype, "),
    ("share_prefill=maybe", "share_prefill=maybe: true or false is expected"),
    ("-x", "unrecognized arguments: -x. Settings are NAME=VALUE"),
    ("--cfg", "argument --cfg/-c: invalid choice"),
    ("benchmark.question_aware=no", "true or false is expected, as in conf/benchmark/ruler.yaml (false)"),
    ("benchmark.seed=x", "benchmark.seed=x: a whole number is expected, as in conf/benchmark/ruler.yaml (42)"),
    ("scorer=snapkv scorer.window=1.5", "a whole number is expected, as in conf/scorer/snapkv.yaml (32)"),
    ("scorer=snapkv scorer.window=true", "a whole number is expected"),
    ("scorer=expected_attention scorer.eps=x", "a number is expected"),
    ("model=qwen3-8b model.chat=no", "true or false is expected, as in conf/model/qwen3-8b.yaml (true)"),
    ("job=calibrate job.save=yes", "true or false is expected"),
    ("-m scorer=snapkv scorer.kernel=7,x", "scorer.kernel=x: a whole number is expected"),
    ("reference=snapkv", "reference=snapkv is no method that keeps the whole cache: choose full, or null (none)"),
    ("method=full scorer=snapkv", "method=full has no allocator to go with its scorer: add allocator=NAME"),
    ("-m experiment=embedded,embedded_lukv", "experiment= takes one name"),
    ("method=lukv -m budget=0.1,7", "budget=7 is not a share"),
    ("hydra.nothing=1", "no setting named 'hydra.nothing'"),
    ("+extra=1", "no setting named 'extra'"),
    ("--config-dir=no/such/folder", "--config-dir no/such/folder is no folder"),
    ("~budget", "'budget' cannot be taken away"),
    ("budget", "'budget' is no NAME=VALUE"),
    ("budget=0.1,0.2", "add -m"),
    ("budget=abc", "budget=abc: a number is expected"),
    ("budget=0", "budget=0 is not a share: it must be > 0 and <= 1"),
    ("budget=-0.1", "is not a share"),
    ("budget=1.5", "is not a share"),
    ("budget=nan", "is not a share"),
    ("budget=inf", "is not a share"),
    ("budget=null", "no budget"),
    ("-m budget=0.1,7", "budget=7 is not a share"),
    ("budget_tokens=0", "must be at least 1"),
    ("budget=0.2 budget_tokens=64", "both budget=0.2 and budget_tokens=64 are given"),
    ("budget=0.2 budget_bytes=0.1", "both budget=0.2 and budget_bytes=0.1 are given: give one of them"),
    ("budget_tokens=64 budget_bytes=0.1", "both budget_tokens=64 and budget_bytes=0.1 are given: give one of them"),
    ("budget_bytes=0", "budget_bytes=0 is not a share"),
    ("budget_bytes=20", "budget_bytes=20 is not a share"),
    ("cache_dtype=int5", "cache_dtype=int5 is not known. Did you mean 'int8'? Choose one of auto, int8, int4"),
    ("seed=1.5", "seed=1.5: a whole number is expected"),
    ("limit=0", "limit=0 must be at least 1"),
    ("limit=x", "limit=x: a whole number is expected"),
    ("batch_size=0", "must be at least 1"),
    ("model=hf", "model.path is not set: add model.path=VALUE"),
    ("benchmark.length=0", "must be at least 1"),
    ("hydra.job.chdir=true", "hydra.job.chdir=true cannot be set: "),
    ("hydra.run.dir=elsewhere", "hydra.run.dir=elsewhere cannot be set: "),
    ("-m hydra.sweep.dir=elsewhere", "runs=FOLDER says where the run folders lie"),
    ("-m hydra.sweep.subdir=elsewhere", "hydra.sweep.subdir=elsewhere cannot be set"),
    ("hydra.output_subdir=.hydra", "hydra.output_subdir=.hydra cannot be set"),
    ("-m hydra/launcher=joblib", "hydra/launcher=joblib is not offered here: cluster=local"),
    ("-m hydra/launcher=submitit_local", "hydra/launcher=submitit_local is not offered here"),
    ("-m hydra/sweeper=optuna", "hydra/sweeper=optuna is not offered here"),
    ("-m --cfg job", "-m and --cfg do not go together"),
    ("--cfg job method=lukw", "Did you mean 'lukv'?"),
    ("--resolve", "--resolve goes with --cfg"),
    ("model.path=a=b", "model.path=a=b: a value with =, "),
    ("model.path=a=b", """: "model.path='a=b'"\n"""),
    ("model.path=a[1", """: "model.path='a[1'"\n"""),
    ("model.path=modèle", """: "model.path='modèle'"\n"""),
    ("+model.path=it's", """: "+model.path='it\\'s'"\n"""),
    ("mèthod=lukv", "'mèthod' cannot be a setting's name. Did you mean 'method'?"),
    ("benchmark.ruler_version=1999", "choose 2024 or 2025"),
    ("scorer._target_=os.system", "scorer._target_=os.system is not in lukv, baselines, evals"),
]


@pytest.mark.parametrize(("line", "says"), BAD, ids=[line for line, _ in BAD])
def test_bad_input(line: str, says: str, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = command(*line.split(), f"runs={tmp_path}/runs")
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("run.py: ")
    assert err.count("\n") == 1
    assert says in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("args", [["method=lukw"], ["budget=1.5"], ["--nothing"]])
def test_as_a_process(args: list[str]) -> None:
    done = process(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_model_that_is_not_trained(command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command("method=full", "model=small", f"model.path={tmp_path}/small", f"runs={tmp_path}/runs") == 2
    err = capsys.readouterr().err
    assert err.endswith("there is no such folder (make it with: python -m models.tiny.train recipe=small)\n")
    assert err.count("\n") == 1


def test_a_model_that_is_not_there(command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = command("method=snapkv", "model=hf", "model.path=./no/such/model", f"runs={tmp_path}")
    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith("run.py: model ./no/such/model: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help() -> None:
    done = process("--help")
    assert done.returncode == 0
    for word in ("method: ", "lukv", "budget: 0.2", "python run.py -m", "compression_ratio"):
        assert word in done.stdout


HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "matplotlib",
    "wandb",
    "datasets",
    "safetensors",
    "tokenizers",
    "nltk",
}


@pytest.mark.parametrize("args", [["--help"], ["method=snapkv", "bugdet=0.2"]], ids=["help", "a wrong name"])
def test_what_needs_no_model_imports_nothing_heavy(args: list[str]) -> None:
    done = process("importtime", "run.py", *args, program="-X")  # python -X importtime: every module, on stderr
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert {"hydra", "evals.run.cli"} <= imported
    assert not {name.split(".")[0] for name in imported} & HEAVY
    assert done.returncode == (0 if args == ["--help"] else 2)


def test_no_folder_shadows_the_budget() -> None:
    """A folder conf/budget, even an empty one, makes Hydra take budget=0.2 for the choice of a file."""
    assert not (Path(__file__).parents[2] / "conf" / "budget").exists()


@pytest.mark.parametrize(
    "line",
    ["scorer=expected_attention scorer.eps=0", "model.device=cpu", "benchmark.tasks=vt", "benchmark.length=2048"],
)
def test_values_that_are_right(line: str) -> None:
    """A whole number for a number, a text for a text, one task for a list of them."""
    from evals.run import cli

    assert len(cli.plan(line.split()).planned) == 1


def test_the_home_folder() -> None:
    """A shell expands ~ at the beginning of a word only."""
    from evals.run.overrides import normalize_arguments

    home = str(Path.home())
    said = normalize_arguments(["runs=~/runs", "model=hf:~/model", "model.tables=a~/b", "~seed"])
    assert said == [f"runs={home}/runs", "model=hf", f"model.path={home}/model", "model.tables=a~/b", "~seed"]


@pytest.mark.parametrize("name", ["a,b.jsonl", "a=b.jsonl", "é [1].jsonl", "it's.jsonl", "a b.jsonl", "plain.jsonl"])
def test_a_file_of_any_name(name: str, tmp_path: Path) -> None:
    """benchmark=jsonl:FILE takes the rest of the argument as it stands; FILE in quotes of Hydra's is the same."""
    from evals.run import cli
    from evals.run.overrides import normalize_arguments, quote

    path = f"{tmp_path}/{name}"
    Path(path).write_text('{"context": "a", "question": "b", "answers": ["c"]}')
    for typed in (path, quote(path)):
        (planned,) = cli.plan(normalize_arguments([f"benchmark=jsonl:{typed}"])).planned
        assert planned.run["benchmark"]["data"] == path


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1))
def test_what_is_quoted_is_read_back(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from evals.run.overrides import quote

    assert str(OverridesParser.create().parse_override(f"model.path={quote(text)}").value()) == text


def test_the_version() -> None:
    done = process("--version")
    assert (done.returncode, done.stdout) == (0, f"LU-KV {version('lukv')}\n")


def test_options_between_settings() -> None:
    from evals.run import cli
    from evals.run.overrides import normalize_arguments

    argv = normalize_arguments(["method=lukv", "-m", "budget=0.1,0.2", "~seed", "limit=1"])
    assert argv == ["-m", "method=lukv", "budget=0.1,0.2", "~seed", "limit=1"]
    assert len(cli.plan(["-m", "method=lukv", "budget=0.1,0.2", "limit=1"]).planned) == 2


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "conf" / "calibration").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_calibration_can_be_made(path: Path, tmp_path: Path) -> None:
    """The data set of each file in conf/calibration, as job=calibrate makes it."""
    from evals.run import cli
    from evals.run.instantiate import create

    needed = {"file": "calibration.benchmark.data", "authors": "calibration.path"}
    short = [f"{needed[path.stem]}={tmp_path}/questions.jsonl"] if path.stem in needed else []
    [planned] = cli.plan(["job=calibrate", f"calibration={path.stem}", *short]).planned
    assert create(planned.run["job"]["data"]["benchmark"]).name


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("_target_: baselines.nothere.X", "cannot be imported: No module named 'baselines.nothere'"),
        ("_target_: baselines.keydiff.KeyDif", "baselines.keydiff has no KeyDif. Did you mean 'KeyDiff'?"),
        ("_target_: KeyDiff", "scorer._target_=KeyDiff is not in lukv, baselines, evals"),
        ("_target_: baselines.keydiff.KeyDiff\nsnk: 3", "unexpected keyword argument 'snk'"),
        ("name: x", "scorer has no _target_: it names the class, as the files in conf/scorer/ do"),
        ("", "scorer has no _target_"),
        ("_target_: a\n  name: x", "mapping values are not allowed here"),
        ("\t", "that cannot start any token"),
    ],
)
def test_a_wrong_yaml_of_ones_own(
    content: str, says: str, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "scorer").mkdir()
    (tmp_path / "scorer" / "mine.yaml").write_text(content)
    code = command(f"--config-dir={tmp_path}", "method=lukv", "scorer=mine", "allocator=uniform", f"runs={tmp_path}/r")
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert (err.count("\n"), says in err) == (1, True), err
