"""A job for the tests: run.py, its configs and run folders are the real ones, only the work is a stand-in."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import yaml

from evals.jobs.job import Job
from evals.run.files import write_json
from evals.run.folder import RunFolder


class Work(Job):
    """`job.samples` samples of `job.pace` seconds. The first time, `job.fault` strikes after two of them."""

    @staticmethod
    def name_data(config: Mapping[str, Any]) -> str:
        return "stand-in"

    def do(self) -> None:
        run, job = self.run, self.run["job"]
        with RunFolder(run) as folder:
            if folder.read_result() is not None:
                return
            done = folder.read_samples()
            attempt = {"start": time.time(), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "done": len(done)}
            write_json(folder.path / f"attempt{os.environ.get('SLURM_RESTART_COUNT', '0')}.json", attempt)
            if not (folder.path / "run.json").exists():  # what RunFolder.begin writes, without torch for its version
                (folder.path / "config.yaml").write_text(yaml.safe_dump(dict(run.config)))
                write_json(folder.path / "run.json", {"inputs": folder.inputs})
            for i in range(len(done), job["samples"]):
                if i == 2 and not done:
                    strike(job.get("fault"))
                time.sleep(job["pace"])
                digest = hashlib.sha256(f"{run['method']} {run['budget']} {i}".encode()).digest()
                folder.append([{"id": str(i), "task": "stand-in", "score": digest[0] / 255, "pid": os.getpid()}])
            scores = [line["score"] for line in folder.read_samples().values()]
            folder.finish({"score": sum(scores) / len(scores), "n": len(scores), "end": time.time()})


def strike(fault: str | None) -> None:
    if fault == "raise":
        raise ValueError("this sample cannot be done")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
