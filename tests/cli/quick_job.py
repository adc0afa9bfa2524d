"""A job that needs no model: it fails at once at one budget, and is done at once at every other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from evals.jobs.job import Job
from evals.run.folder import RunFolder, write_json


class Quick(Job):
    @staticmethod
    def name_data(config: Mapping[str, Any]) -> str:
        return "quick"

    def do(self) -> None:
        if self.run["budget"] == 0.1:
            raise ValueError("it cannot begin")
        with RunFolder(self.run) as folder:
            (folder.path / "config.yaml").write_text(yaml.safe_dump(dict(self.run.config)))
            write_json(folder.path / "run.json", {})
            folder.finish({"score": 0.5})
