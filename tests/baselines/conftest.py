"""The configs under conf/, built as the program builds them."""

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"


def pytest_generate_tests(metafunc):
    """An argument called any_scorer, any_allocator or any_method: every config of that group."""
    for group in ("scorer", "allocator", "method"):
        if f"any_{group}" in metafunc.fixturenames:
            metafunc.parametrize(f"any_{group}", sorted(path.stem for path in (CONF / group).glob("*.yaml")))


@pytest.fixture
def build(tmp_path):
    """build(scorer="snapkv", allocator="adakv"): the objects of these configs."""

    def build(**groups):
        root = OmegaConf.create({"seed": 0, "model": {"tables": str(tmp_path)}})
        for group, name in groups.items():
            root[group] = OmegaConf.load(CONF / group / f"{name}.yaml")
        return [instantiate(root[group]) for group in groups]

    return build
