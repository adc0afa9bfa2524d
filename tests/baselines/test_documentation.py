"""docs/add-a-method.md does what it says: its files are written, its yamls built, its check run."""

import re
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import baselines
from lukv.contract import check_method
from lukv.scoring import Scorer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The document's files under tmp_path; its `baselines/` belongs to the package for the time of the test."""
    text = (ROOT / "docs" / "add-a-method.md").read_text()
    files = re.findall(r"`((?:baselines|conf)/[\w/]+\.(?:py|yaml))`[^\n]*\n\n```(?:python|yaml)\n(.*?)```", text, re.S)
    for path, content in files:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path / "baselines")])
    rest = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "check_method(" in block]
    return tmp_path, dict(files), rest


def test_the_example_is_complete(example):
    _, files, rest = example
    assert set(files) == {
        "baselines/value_norm.py",
        "conf/scorer/value_norm.yaml",
        "conf/method/value_norm.yaml",
        "baselines/diamond.py",
        "conf/allocator/diamond.yaml",
    }
    assert len(rest) == 1


def test_the_example_runs(example):
    folder, files, (check,) = example
    exec(compile(check, "add-a-method.md", "exec"), {})
    scorer = instantiate(OmegaConf.load(folder / "conf/scorer/value_norm.yaml"))
    allocator = instantiate(OmegaConf.load(folder / "conf/allocator/diamond.yaml"))
    assert isinstance(scorer, Scorer)
    check_method(scorer, allocator)
    method = OmegaConf.create(files["conf/method/value_norm.yaml"])
    assert method.method == "value_norm"
    assert len((folder / "baselines/value_norm.py").read_text().splitlines()) < 110


def test_every_method_is_described():
    text = (ROOT / "docs" / "methods.md").read_text()
    for group in ("method", "scorer", "allocator"):
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            assert re.search(rf"\b{path.stem}\b", text), f"{group} {path.stem} is missing in docs/methods.md"
