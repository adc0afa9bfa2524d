"""What evaluate calls: no tracker unless the config names one."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from evals.run.instantiate import InputError
from evals.run.tracking import Tracker, Wandb, follow
from lukv.conf import CONF


def test_none_is_the_default_and_tracks_nothing(tmp_path: Path) -> None:
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "track" / "none.yaml"))
    with follow(settings, tmp_path) as tracker:  # type: ignore[arg-type]
        assert type(tracker) is Tracker
    assert list(tmp_path.iterdir()) == []


def test_wandb_yaml_makes_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(Wandb, "follow", lambda self, folder, done: seen.append(self) or follow(None, folder, done))
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "track" / "wandb.yaml"))
    with follow(settings, tmp_path) as tracker:  # type: ignore[arg-type]
        tracker.finish({})
    assert seen == [Wandb(project="lukv", entity=None, mode="auto", system_metrics=True)]


def test_a_wrong_setting_is_an_input_error(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="colour"),
        follow({"_target_": "evals.run.tracking.Wandb", "colour": 1}, tmp_path),
    ):
        pass
