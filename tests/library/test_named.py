"""A method by its name is the one that the command line runs."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from transformers import AutoModelForCausalLM, PreTrainedModel

import lukv
from baselines.snapkv import SnapKV
from evals.run.build import build_method
from evals.run.compose import compose_run
from lukv.allocation import Budget, Uniform
from lukv.backend.attention import use_ragged_attention
from lukv.conf import CONF, GROUPS, read_option
from lukv.named import find_model_settings
from lukv.selection import Eviction, Protection

TINY = CONF.parent / "models" / "tiny"


@pytest.fixture(scope="module")
def tiny() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(TINY, use_safetensors=True).eval()


def on_the_command_line(*overrides: str) -> tuple[Any, ...] | None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        method = build_method(compose_run(["model=tiny", "budget=0.2", *overrides]))
    return None if method is None else tuple(method)


def parts(eviction: Eviction | None) -> tuple[Any, ...] | None:
    return None if eviction is None else (eviction.scorer, eviction.allocator, eviction.protection)


def told(parts: tuple[Any, ...] | None) -> list[Any]:
    """Class and arguments of each part. An allocator without arguments is equal to no other."""
    return [
        (type(part), {f.name: getattr(part, f.name) for f in fields(part)} if is_dataclass(part) else {})
        for part in parts or ()
    ]


@pytest.mark.parametrize("name", GROUPS["method"])
def test_every_method(name: str, tiny: PreTrainedModel) -> None:
    assert told(parts(lukv.method(name, 0.2, tiny))) == told(on_the_command_line(f"method={name}"))


@pytest.mark.parametrize("scorer", [s for s in GROUPS["scorer"] if s not in ("random", "streaming")])
def test_another_scorer_under_lukv(scorer: str, tiny: PreTrainedModel) -> None:
    """Those with a table of their own; the others lack one on the command line, too."""
    if not (TINY / "tables" / f"{scorer}.safetensors").is_file():
        with pytest.raises(FileNotFoundError, match=f"no budget table at .*{scorer}.* tables=FOLDER"):
            lukv.method("lukv", 0.2, tiny, scorer=scorer)
        return
    assert parts(lukv.method("lukv", 0.2, tiny, scorer=scorer)) == on_the_command_line(
        "method=lukv", f"scorer={scorer}"
    )


@pytest.mark.parametrize("method", ["chunkkv", "criticalkv", "criticaladakv"])
@pytest.mark.parametrize(
    "settings",
    [
        {"scorer.inner.window": 16, "scorer.inner.kernel": 5},
        {"scorer@scorer.inner": "keydiff"},
        {"scorer.inner.window": 16, "scorer@scorer.inner": "snapkv_kvpress"},
        {"scorer@scorer.inner": "random"},
        {"scorer@scorer.inner": "utility_probe"},
    ],
    ids=lambda settings: " ".join(f"{key}={value}" for key, value in settings.items()),
)
def test_a_scorer_around_another(method: str, settings: dict[str, Any], tiny: PreTrainedModel) -> None:
    typed = [f"{key}={value}" for key, value in settings.items()]
    ours = lukv.method(method, 0.2, tiny, seed=3, settings=settings)
    assert told(parts(ours)) == told(on_the_command_line(f"method={method}", "seed=3", *typed))
    assert told(parts(ours)) != told(parts(lukv.method(method, 0.2, tiny)))


def test_values_of_one_method_do_not_stay_for_the_next() -> None:
    lukv.method("chunkkv", 0.2, settings={"scorer.inner.window": 16})
    assert lukv.method("chunkkv", 0.2).scorer.inner.window == 32
    mine = lukv.method("chunkkv", 0.2, settings={"scorer@scorer.inner": SnapKV("mine")})
    assert mine.scorer.inner == SnapKV("mine")


def test_parts_by_name_by_object_and_single_values() -> None:
    mine = lukv.method("snapkv", budget_tokens=8, scorer=SnapKV("mine"), allocator=Uniform(), protection=Protection(2))
    assert mine == Eviction(SnapKV("mine"), mine.allocator, Protection(2), Budget(tokens=8))
    set_so = lukv.method("snapkv", 0.5, protection="equal", settings={"scorer.window": 16, "protection.sink": 3})
    assert set_so.scorer.window == 16
    assert set_so.protection == Protection(3, 1)
    assert lukv.method("random", 0.5, seed=7).scorer.seed == 7
    assert lukv.method("keydiff", 0.5, cache_dtype="int8").cache_dtype == "int8"
    assert lukv.method("full", cache_dtype="int4").budget == Budget(1.0)


def test_every_option_is_read_as_omegaconf_reads_it() -> None:
    from omegaconf import OmegaConf

    for group in ("scorer", "allocator", "protection", "model", "benchmark"):
        for option in GROUPS[group]:
            content: Any = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))
            content.pop("defaults", None)
            read = read_option(group, option)
            assert {key: read[key] for key in content.get(group, content)} == content.get(group, content)


def test_yaml_numbers_and_dates(tmp_path: Path) -> None:
    from lukv.conf import read_yaml

    file = tmp_path / "some.yaml"
    file.write_text("a: 1e-3\nb: 2024-07-26\nc: 1.5e2\nd: 12\ne: 1_000.0\n")
    assert read_yaml(file) == {"a": 0.001, "b": "2024-07-26", "c": 150.0, "d": 12, "e": 1000.0}


def test_tables_are_found_by_where_the_model_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(find_model_settings(str(TINY))["tables"]).samefile(TINY / "tables")
    monkeypatch.chdir(TINY.parent)
    assert Path(find_model_settings("tiny")["tables"]).samefile(TINY / "tables")
    assert find_model_settings("meta-llama/Llama-3.1-8B-Instruct")["name"] == "llama-3.1-8b-instruct"
    assert Path(find_model_settings("Some/Some$Model")["tables"]).parts[-2:] == ("tables", "some-model")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "snapk"}, "method=snapk is not known. Did you mean 'snapkv'\\? Choose one of "),
        ({"name": "lukv", "scorer": "keydif"}, "scorer=keydif is not known. Did you mean 'keydiff'\\?"),
        ({"name": "snapkv", "allocator": "unifrom"}, "allocator=unifrom is not known. Did you mean 'uniform'\\?"),
        ({"name": "snapkv", "protection": "eqal"}, "protection=eqal is not known"),
        ({"name": "full", "scorer": "snapkv"}, "method=full has no allocator to go with its scorer"),
        ({"name": "snapkv", "budget": 20}, "budget=20 is not a share"),
        ({"name": "snapkv", "budget": None}, "exactly one of budget, budget_tokens"),
        ({"name": "snapkv", "budget_tokens": 3}, "exactly one of budget, budget_tokens"),
        ({"name": "snapkv", "budget": None, "budget_bytes": 0.1}, "budget_bytes depends on what the model stores"),
        ({"name": "snapkv", "budget_bytes": 0.1}, "budget_bytes is given with budget"),
        ({"name": "snapkv", "cache_dtype": "int"}, "cache_dtype=int is not known"),
        ({"name": "full", "cache_dtype": "int"}, "cache_dtype=int is not known"),
        ({"name": "snapkv", "settings": {"scorer.windw": 3}}, "no 'windw'. Did you mean 'scorer.window'\\?"),
        ({"name": "snapkv", "settings": {"windw": 3}}, "settings: 'windw' is no value of a part"),
        ({"name": "chunkkv", "settings": {"scorer.inner": "keydiff"}}, "write 'scorer@scorer.inner' for its name"),
        (
            {"name": "chunkkv", "settings": {"scorer.inner.windw": 3}},
            "scorer=chunkkv has no 'inner.windw'. Did you mean 'scorer.inner.window'\\? It has name, ",
        ),
        ({"name": "chunkkv", "settings": {"scorer@scorer.inner": "keydif"}}, "Did you mean 'keydiff'\\?"),
        ({"name": "chunkkv", "settings": {"scorer@scorer.iner": "keydiff"}}, "has no 'iner'. Did you mean 'scorer@sco"),
        ({"name": "snapkv", "settings": {"scorer@scorer.inner": "keydiff"}}, "has no 'inner'. It has none"),
        ({"name": "chunkkv", "settings": {"scorer@scorer.inner": "utility_probe"}}, "reads a file made for the model"),
        ({"name": "lukv"}, "this allocator reads a file made for the model: give model=MODEL or tables=FOLDER"),
    ],
)
def test_what_cannot_be_asked_for(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        lukv.method(**{"budget": 0.2, **arguments})


def test_a_table_of_another_model(model: Path) -> None:
    other = AutoModelForCausalLM.from_pretrained(model, use_safetensors=True).eval()
    with pytest.raises(ValueError, match=r"is for 4 layers of 4 KV heads, not for random, 2 layers"):
        lukv.method("lukv", 0.2, other, tables=TINY / "tables")
    command = f"python run.py job=calibrate model=hf:{model}"
    with pytest.raises(
        FileNotFoundError, match=rf"no budget table at .*tables/random/keydiff.safetensors: .*{command} "
    ):
        lukv.method("lukv", 0.2, other)
    with pytest.raises(FileNotFoundError, match=rf"{command} model.tables=mine scorer=keydiff .*, or say with tables="):
        lukv.method("lukv", 0.2, other, tables="mine")


def test_a_model_whose_attention_is_ours_stays_so(tiny: PreTrainedModel) -> None:
    before = tiny.config._attn_implementation
    use_ragged_attention(tiny)
    try:
        lukv.method("lukv", 0.2, tiny)
        assert tiny.config._attn_implementation == "lukv_ragged"
    finally:
        tiny.set_attn_implementation(before)
