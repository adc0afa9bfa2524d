"""Method yamls name only options that exist, and hold nothing but names."""

from pathlib import Path

from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
PARTS = ("scorer", "allocator", "protection")


def test_method_yaml(any_method):
    config = OmegaConf.to_container(OmegaConf.load(CONF / "method" / f"{any_method}.yaml"))
    assert set(config) == {"defaults", "method"}  # anything else would beat scorer= on the command line
    assert config["method"] == any_method
    chosen = {key.removeprefix("override /"): option for entry in config["defaults"] for key, option in entry.items()}
    assert set(chosen) == set(PARTS)
    for group, option in chosen.items():
        assert option is None or (CONF / group / f"{option}.yaml").is_file()
    assert (chosen["scorer"] is None) == (chosen["allocator"] is None)


def test_scorer_carries_its_own_name(build, any_scorer):
    """Budget tables are found by it."""
    assert build(scorer=any_scorer)[0].name == any_scorer


def test_every_yaml_says_what_it_is():
    for group in ("method", *PARTS):
        for path in (CONF / group).glob("*.yaml"):
            lines = path.read_text().splitlines()
            assert any(line.startswith("# ") and not line.startswith("# @") for line in lines[:2]), path
