"""Two different experiments never share a folder, and one experiment never has two."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from evals.run import cli
from evals.run.files import write_json
from evals.run.folder import RunFolder
from evals.run.overrides import normalize_arguments
from evals.run.settings import Run
from lukv.conf import ROOT
from tests.as_typed import Command

TINY = ROOT / "models" / "tiny"
TABLE = TINY / "tables" / "keydiff.safetensors"
VT = "benchmark.tasks=[vt]"


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(ROOT)
    return tmp_path / "runs"


@pytest.fixture
def plan(runs: Path):
    """plan("method=snapkv", ...) -> the runs that would be done."""

    def call(*args: str) -> list[Run]:
        return [p.run for p in cli.plan(normalize_arguments([*args, f"runs={runs}"])).planned]

    return call


def begin(run: Run) -> None:
    with RunFolder(run) as folder:
        folder.begin({})


def copy_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for file in TINY.iterdir():
        if file.suffix in (".json", ".safetensors"):
            shutil.copy2(file, folder)
    return folder


def change(file: Path) -> None:
    """The same size and the same time: only the content tells."""
    at = file.stat()
    file.write_bytes(file.read_bytes()[:-2] + b" \n")
    os.utime(file, ns=(at.st_atime_ns, at.st_mtime_ns))


@pytest.mark.parametrize(
    "same",
    [
        ["track=wandb", "track.mode=offline", "track.project=team"],
        [
            "model.device=cpu",
            "model.prefill_chunk=99",
            "batch_size=1",
            "share_prefill=false",
            "reference=null",
            "debug=true",
        ],
        ["benchmark.length=1024", "scorer.window=32", "protection.sink=0", "limit=null", "attention=auto"],
        ["cache_dtype=auto", "budget_bytes=null"],
        ["calibration=reconstruct", "calibration.contexts=3"],
        [f"model.path={TINY}"],
    ],
)
def test_what_changes_no_result_changes_no_name(same: list[str], plan) -> None:
    [usual], [run] = plan("method=snapkv", VT), plan("method=snapkv", VT, *same)
    assert (run.id, run.hash) == (usual.id, usual.hash)
    assert run.id == "tiny__snapkv__b0.2__ruler-1024__s0__benchmark.tasks=vt"


def test_each_of_these_is_an_experiment_of_its_own(plan, tmp_path: Path) -> None:
    """Names that differ in symbols, blanks, capitals, late digits; folders of one name; ids too long."""
    a, b = (copy_model(tmp_path / name / "checkpoint-500") for name in "ab")
    config = json.loads((b / "config.json").read_text())
    (b / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    long = "x" * 300
    swept = [
        ["budget=0.1234567"], ["budget=0.1234568"], ["budget_tokens=12"], ["budget_bytes=0.2"],
        ["cache_dtype=int8"], ["cache_dtype=int4"], ["seed=1"], ["limit=1"], ["attention=loop"],
        *([f"model.name={name}"] for name in ("'a b'", "a-b", "a_b", "'a/b'", "A-b", "'a--b'", "'[a-b]'")),
        [f"model.name={long}"], [f"model.name={long}y"], ["benchmark.tasks=vt"],
        ["model=hf", f"model.path={a}"], ["model=hf", f"model.path={b}"],
        ["scorer.window=16"], ["protection=equal"], ["protection.sink=1"],
    ]  # fmt: skip
    found = [plan("method=snapkv", *args)[0] for args in swept]
    assert len({run.id for run in found}) == len(swept)
    assert len({run.hash for run in found}) == len(swept)
    assert max(len(run.id) for run in found) <= 200
    assert {run.label for run in found} == {
        "snapkv", "snapkv int8", "snapkv int4", "snapkv scorer.window=16", "snapkv-equal", "snapkv protection.sink=1",
    }  # fmt: skip


def test_what_evicts_while_answering_is_in_the_name(plan, runs: Path) -> None:
    [plain] = plan("method=snapkv")
    assert plain.id == plan("method=snapkv", "decoding=none")[0].id
    asked = [["decoding=size"], ["decoding=size", "decoding.tokens=99"], ["decoding=size", "decoding.every=9"]]
    asked += [["decoding=share"], ["decoding=share", "decoding.share=0.15"]]
    names = ["size1024-every64", "size99-every64", "size1024-every9", "share0.2-every64", "share0.15-every64"]
    for typed, name in zip(asked, names, strict=True):
        [run] = plan("method=snapkv", *typed)
        assert run.id == plain.id.replace("__b0.2__", f"__b0.2__{name}__")
        assert (run.label, run.comparison_id) == (f"snapkv {name}", plain.comparison_id)
        assert run.make_reference().id == plain.make_reference().id
        [calibration], [plainly] = (plan("job=calibrate", "scorer=snapkv", *more) for more in (typed, []))
        assert (calibration.id, calibration.hash) == (plainly.id, plainly.hash)


@pytest.mark.parametrize("known", [True, False], ids=["new folder", "older folder"])
def test_a_run_that_evicts_nothing_while_answering_is_none_that_does(known: bool, plan, runs: Path) -> None:
    """Also if its config.yaml was written before there was decoding=, or has the very values that are usual now."""
    [plain] = plan("method=snapkv")
    begin(plain)
    config = plain.folder / "config.yaml"
    assert "decoding: null\n" in config.read_text()
    if not known:
        config.write_text(config.read_text().replace("decoding: null\n", ""))
        assert plan("method=snapkv")[0].id == plain.id
    plain.folder.rename(runs / plan("method=snapkv", "decoding=size")[0].id)
    [sized] = plan("method=snapkv", "decoding=size")
    assert sized.id.endswith(sized.hash[:8])  # the folder of this name is another experiment's
    assert plan("method=snapkv")[0].folder.is_dir()


def test_a_folder_from_before_cache_dtype_is_that_of_auto(plan, runs: Path) -> None:
    """Its config.yaml does not have the settings; another dtype is another run, the full cache's too."""
    [run] = plan("method=keydiff", VT)
    begin(run)
    config = runs / run.id / "config.yaml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith(("cache_dtype", "budget_bytes"))]
    config.write_text("\n".join(lines) + "\n")
    [again], [other] = plan("method=keydiff", VT), plan("method=keydiff", VT, "cache_dtype=int8")
    assert again.id == run.id == "tiny__keydiff__b0.2__ruler-1024__s0__benchmark.tasks=vt"
    assert other.id == "tiny__keydiff__b0.2__int8__ruler-1024__s0__benchmark.tasks=vt"
    [full] = plan("method=full", VT, "cache_dtype=int8", "budget_bytes=0.1")
    assert full.id == "tiny__full__int8__ruler-1024__s0__benchmark.tasks=vt"
    assert full.make_reference().id == other.make_reference().id == "tiny__full__ruler-1024__s0__benchmark.tasks=vt"
    assert full.comparison_id == run.comparison_id


def test_a_method_is_called_by_what_it_does(plan) -> None:
    """By the method that has this scorer and this allocator, whatever method= it started from."""
    [usual] = plan("method=snapkv")
    [typed] = plan("method=lukv", "scorer=snapkv", "allocator=uniform", "protection=own")
    assert (typed.id, typed.hash, typed["method"]) == (usual.id, usual.hash, "snapkv")
    [equal] = plan("method=lukv", "scorer=snapkv", "allocator=uniform")
    assert equal.id.split("__")[1] == "snapkv-equal"
    names = {
        "lukv": ["method=lukv"],
        "lukv-snapkv": ["method=lukv", "scorer=snapkv"],
        "lukv-lu_curve": ["method=lukv", "allocator=lu_curve"],
        "expected_attention": ["method=expected_attention"],
        "adakv_original": ["method=adakv_original"],
        "adakv-keydiff": ["method=adakv", "scorer=keydiff"],
        "snapkv_kvpress-uniform": ["method=snapkv", "scorer=snapkv_kvpress"],
        "snapkv_kvpress-uniform-equal": ["method=lukv", "scorer=snapkv_kvpress", "allocator=uniform"],
    }
    for name, typed in names.items():
        [run] = plan(*typed)
        assert (run.label, run.id.split("__")[1]) == (name, name)


@pytest.mark.parametrize(
    ("typed", "older"),
    [
        (["method=lukv"], "lukv-keydiff"),
        (["method=expected_attention", "scorer.eps=0.5"], "expected_attention-expected_attention"),
        (["method=keydiff"], "lukv-keydiff-uniform-own"),
        (["method=snapkv", "scorer=snapkv_kvpress"], "snapkv-snapkv_kvpress"),
    ],
)
def test_a_run_keeps_the_folder_that_an_older_version_named(typed: list[str], older: str, plan, runs: Path) -> None:
    """Names had the scorer of every method, and the method= that was typed."""
    [run] = plan(*typed)
    model, method, *rest = run.id.split("__")
    assert method != older
    begin(run)
    name = "__".join([model, older, *rest])
    run.folder.rename(runs / name)
    config = runs / name / "config.yaml"
    config.write_text(config.read_text().replace(f"method: {run['method']}\n", f"method: {older.split('-')[0]}\n"))
    [again] = plan(*typed)
    assert (again.id, again.label) == (name, run.label)
    assert plan(*typed, "budget=0.3")[0].id == run.id.replace("__b0.2__", "__b0.3__")


@pytest.mark.parametrize(
    "file", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"]
)
def test_every_file_of_a_model_counts(file: str, plan, tmp_path: Path) -> None:
    model = copy_model(tmp_path / "model")
    args = ["method=snapkv", "model=hf", f"model.path={model}"]
    [before] = plan(*args)
    begin(before)
    change(model / file)
    [after] = plan(*args)
    assert after.id != before.id
    (model / "README.md").write_text("not read by any run")
    assert plan(*args)[0].id == after.id


def test_a_chat_template_of_its_own_counts(plan, tmp_path: Path) -> None:
    model = copy_model(tmp_path / "model")
    args = ["method=snapkv", "model=hf", f"model.path={model}"]
    [before] = plan(*args)
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert plan(*args)[0].id != before.id


def test_data_is_told_by_its_content_wherever_it_lies(plan, tmp_path: Path) -> None:
    data = tmp_path / "here" / "data"
    data.mkdir(parents=True)
    (data / "trec.jsonl").write_text("one two")
    (data / ".hidden").write_text("never read")
    args = ["method=snapkv", "benchmark=longbench"]
    [before] = plan(*args, f"benchmark.data={data}")
    begin(before)
    shutil.copytree(data, tmp_path / "there" / "other")
    shutil.rmtree(data)
    [moved] = plan(*args, f"benchmark.data={tmp_path}/there/other")
    assert (moved.id, moved.hash) == (before.id, before.hash)
    assert str(tmp_path) not in moved.id
    (tmp_path / "there" / "other" / ".hidden").unlink()
    assert plan(*args, f"benchmark.data={tmp_path}/there/other")[0].id == before.id
    change(tmp_path / "there" / "other" / "trec.jsonl")
    [changed] = plan(*args, f"benchmark.data={tmp_path}/there/other")
    assert changed.id != before.id


def test_a_runs_folder_may_be_moved(plan, runs: Path, tmp_path: Path) -> None:
    model = copy_model(tmp_path / "model")
    [before] = plan("method=snapkv", "model=hf", f"model.path={model}")
    begin(before)
    shutil.move(model, tmp_path / "elsewhere" / "model")
    shutil.move(runs, tmp_path / "moved")
    args = ["method=snapkv", "model=hf", f"model.path={tmp_path}/elsewhere/model", f"runs={tmp_path}/moved"]
    [planned] = cli.plan(args).planned
    assert planned.run.id == before.id
    with RunFolder(planned.run):
        pass


def test_a_table_is_its_tensors(plan, tmp_path: Path) -> None:
    """Metadata, such as the date of a calibration, makes no other table. Other budgets do, under any name."""
    tables = tmp_path / "tables"
    tables.mkdir()
    shutil.copy(TABLE, tables)
    args = ["method=lukv", f"model.tables={tables}"]
    [shipped], [before] = plan("method=lukv"), plan(*args)
    assert (before.id, before.hash) == (shipped.id, shipped.hash)
    begin(before)
    tensors = load_file(tables / "keydiff.safetensors")
    save_file(tensors, tables / "keydiff.safetensors", {"kind": "lukv budget table", "json": "{}"})
    assert plan(*args)[0].id == before.id
    save_file({**tensors, "kept": tensors["kept"][::-1].copy()}, tables / "keydiff.safetensors")
    [other] = plan(*args)
    assert other.id != before.id
    assert other.label.startswith("lukv allocator.path=")


def test_a_changed_table_of_the_same_name_has_a_folder_of_its_own(plan, runs: Path) -> None:
    [run] = plan("method=lukv")
    begin(run)
    record = json.loads((run.folder / "run.json").read_text())
    assert set(record["inputs"]) == {"model.path", "allocator.path"}
    write_json(run.folder / "run.json", {**record, "inputs": {**record["inputs"], "allocator.path": "0" * 32}})
    [again] = plan("method=lukv")
    assert again.id == f"{run.id}__{again.hash[:8]}"
    begin(again)
    assert plan("method=lukv")[0].id == again.id
    assert len(list(runs.iterdir())) == 2


def test_a_setting_that_came_later_was_its_default(plan) -> None:
    [run] = plan("method=snapkv", "benchmark.scoring=official")
    begin(run)
    config = run.folder / "config.yaml"
    text = config.read_text()
    assert "  scoring: official\n" in text
    config.write_text(text.replace("  scoring: official\n", ""))
    assert plan("method=snapkv")[0].id == run.id
    assert plan("method=snapkv", "benchmark.scoring=kvpress")[0].id != run.id
    config.write_text(text.replace("  scoring: official\n", "  scoring: null\n"))
    assert plan("method=snapkv")[0].id != run.id


@pytest.mark.parametrize("job", ["calibrate", "latency"])
def test_a_job_without_a_benchmark_is_the_same_beside_any(job: str, plan) -> None:
    [usual] = plan(f"job={job}", "method=keydiff")
    [other] = plan(f"job={job}", "method=keydiff", "benchmark=ruler_learnt", "limit=3")
    assert (usual.id, usual.hash) == (other.id, other.hash)


def test_names_of_calibrations_are_short(plan, tmp_path: Path) -> None:
    sources = tmp_path / "a" / "long" / "way" / "to" / "sources"
    sources.mkdir(parents=True)
    args = ["job=calibrate", "scorer=keydiff", f"calibration.benchmark.sources={sources}", "job.save=true"]
    [run] = plan(*args, "calibration.benchmark.length=2048", "calibration.contexts=2", "job.overwrite=true")
    print_ = run.inputs["job.data.benchmark.sources"][:8]
    assert run.id == (
        f"tiny__keydiff__calibrate-ruler-2048__s0__calibration.benchmark.sources={print_}__calibration.contexts=2"
    )


def test_another_checkpoint_under_the_name_of_one_that_is_here(
    command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = copy_model(tmp_path / "model")
    change(model / "model.safetensors")
    assert command("method=snapkv", f"model.path={model}", f"runs={tmp_path}/runs") == 2
    line = f"run.py: model.path={model} is another checkpoint than model=tiny: run it by model=hf:{model}\n"
    assert capsys.readouterr().err == line


def test_a_table_that_is_there_is_not_overwritten(
    command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Said before anything is computed."""
    before = TABLE.read_bytes()
    assert command("job=calibrate", "scorer=keydiff", "job.save=true", f"runs={tmp_path}/runs") == 2
    assert "is another table: job.overwrite=true replaces it" in capsys.readouterr().err
    assert TABLE.read_bytes() == before


def test_a_large_file_is_read_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By any process, until it changes."""
    from evals.run import fingerprint as module

    monkeypatch.setattr(module, "LARGE", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "weights.bin"
    file.write_bytes(b"0123456789abcdef")
    read: list[Path] = []
    hash_content = module.hash_content
    monkeypatch.setattr(module, "hash_content", lambda path: read.append(path) or hash_content(path))
    first = module.fingerprint(file)
    module._read_fingerprint.cache_clear()  # as in another process
    assert module.fingerprint(file) == first
    assert len(read) == 1
    change(file)
    assert module.fingerprint(file) != first
    assert len(read) == 2
