"""Weights & Biases beside the run folder: what a run asked for, how it goes, what came out.

    python -m evals.run.tracking log runs/RUN ...        finished runs that were made without track=wandb
    python -m evals.run.tracking dashboard [--entity E] [--project P] [--json]

The run folder stays the record. Everything here is read from its files or handed over while they grow, so that tracking
can fail, be switched off or be done later without touching a result.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from evals.run.folder import read_json, read_samples
from evals.run.settings import create

if TYPE_CHECKING:
    import wandb

Line = Mapping[str, Any]
"""A line of samples.jsonl."""

PREDICTIONS = ("id", "task", "prediction", "references", "score", "kept_share", "error")
"""Columns of the table of predictions."""


class Tracker:
    """What `track=none` is: every report goes nowhere."""

    def sample(self, line: Line) -> None:
        """One more sample is done."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """The run is done."""


@dataclass(frozen=True)
class Wandb:
    """conf/track/wandb.yaml. `mode` auto is online if there is an API key, else offline."""

    project: str = "lukv"
    entity: str | None = None
    mode: str = "auto"
    system_metrics: bool = True

    def __post_init__(self) -> None:
        modes = ("auto", "online", "offline")
        if self.mode not in modes:
            raise ValueError(f"track.mode={self.mode} is none of {', '.join(modes)}")

    @contextmanager
    def follow(self, folder: Path, done: Sequence[Line] = ()) -> Iterator[WandbTracker]:
        """Track the run of a folder that has config.yaml and run.json; `done`: its samples from before this process.

        Raises RuntimeError if W&B cannot be reached. Whatever ends the block, the W&B run ends with it: as failed if
        that was an exception.
        """
        run = self._open(folder, read_json(folder / "run.json"), yaml.safe_load((folder / "config.yaml").read_text()))
        try:
            yield WandbTracker(run, folder, done)
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()

    def _open(self, folder: Path, about: Mapping[str, Any], config: Mapping[str, Any]) -> wandb.Run:
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        online = self.mode == "online" or (self.mode == "auto" and wandb.login(prompt=False, verify=False))
        subject = config["job"].get("subject") or create(config["benchmark"]).name
        settings = wandb.Settings(console="off", silent=True, init_timeout=30, x_disable_stats=not self.system_metrics)
        try:
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                id=wandb_id(about),
                resume="allow",
                name=about["run_id"],
                group=f"{config['model']['name']}/{subject}",
                tags=[config["method"] or job(config)],
                job_type=job(config),
                mode="online" if online else "offline",
                dir=folder,
                config={**config, "job": job(config), "provenance": dict(about)},
                settings=settings,
            )
        except wandb.errors.Error as e:
            line = " ".join(str(e).split())
            raise RuntimeError(f"W&B: {line}. Go on without: track=none, or track.mode=offline") from e
        table = (config.get("allocator") or {}).get("path")
        if table and Path(table).is_file():
            use(run, budget_table(Path(table), config["model"]["name"]))
        return run


@contextmanager
def following(settings: Mapping[str, Any] | None, folder: Path, done: Sequence[Line] = ()) -> Iterator[Tracker]:
    """Track the run of a folder in the way its config says (conf/track/)."""
    if not settings:
        yield Tracker()
        return
    with create(settings).follow(folder, done) as tracker:
        yield tracker


class WandbTracker(Tracker):
    """One W&B run. Its step is the number of samples done, so that a resumed run goes on where it stopped."""

    def __init__(self, run: wandb.Run, folder: Path, done: Sequence[Line] = ()) -> None:
        self._run, self._folder = run, folder
        self._scores = {line["id"]: line["score"] for line in done if "error" not in line}

    def sample(self, line: Line) -> None:
        if "error" in line:
            return
        self._scores[line["id"]] = line["score"]
        running = {"running/score": sum(self._scores.values()) / len(self._scores)}
        running |= {f"running/{k}": v for k, v in line.get("times", {}).items() if k not in ("batch", "shared")}
        self._run.log(running, step=len(self._scores))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Tables and pictures of what evaluate or latency found, and the budget tables that calibrate made."""
        import wandb

        media: dict[str, Any] = {}
        samples = read_samples(self._folder / "samples.jsonl")
        if samples:
            cells = [[cell(line.get(column)) for column in PREDICTIONS] for line in samples]
            media["predictions"] = wandb.Table(columns=list(PREDICTIONS), data=cells)
        if result.get("tasks"):
            bars = wandb.Table(columns=["task", "score"], data=[[t, r["score"]] for t, r in result["tasks"].items()])
            media["tasks"] = wandb.plot.bar(bars, "task", "score", title="Score per task")
        heads = result.get("budget", {}).get("heads")
        if heads:
            media["heads/kept_share"] = wandb.Image(
                head_budgets(heads), caption="kept share: layer down, KV head across"
            )
        rows = result.get("rows")
        if rows:
            media["latency"] = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        if media:
            self._run.log(media, step=len(self._scores))
        self._run.summary.update(summary(result))
        for path in sorted(self._folder.glob("tables/*.safetensors")):
            self._run.log_artifact(budget_table(path, self._run.config["model"]["name"]))


def summary(result: Mapping[str, Any]) -> dict[str, float]:
    """result.json as flat names: score/, tasks/, cost/. These are what the dashboard plots."""
    out = {f"tasks/{task}": entry["score"] for task, entry in result.get("tasks", {}).items()}
    if "score" in result:
        out["score/mean"] = result["score"]
    if "ci95" in result:
        out["score/ci95_low"], out["score/ci95_high"] = result["ci95"]
    cost = {**result.get("budget", {}), **result.get("time", {}), **result.get("memory", {})}
    out |= {f"cost/{key}": value for key, value in cost.items() if isinstance(value, (int, float))}
    if cost.get("full_cache_bytes"):
        out["cost/cache_share"] = cost["cache_bytes"] / cost["full_cache_bytes"]
    return out


def cell(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def job(config: Mapping[str, Any]) -> str:
    """evaluate, calibrate or latency: the module of the job's function."""
    return config["job"]["_target_"].rsplit(".", 1)[-1]


def wandb_id(about: Mapping[str, Any]) -> str:
    """The same for every process that works on this run, another one as soon as a setting that matters differs."""
    return hashlib.sha256(f"{about['run_id']} {about['config_hash']}".encode()).hexdigest()[:16]


def budget_table(path: Path, model: str) -> wandb.Artifact:
    """The artifact of a table file. W&B knows it by its content: what calibrate made is what evaluate uses."""
    import wandb

    artifact = wandb.Artifact(f"budgets-{model}-{path.stem}", type="budget-table")
    artifact.add_file(str(path), name=path.name)
    return artifact


def use(run: wandb.Run, artifact: wandb.Artifact) -> None:
    """Declare an input. W&B's own use_artifact refuses to when offline; what it does online can be noted offline."""
    if run.offline:
        run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
    else:
        run.use_artifact(artifact)


def head_budgets(heads: Sequence[Sequence[float]]) -> Any:
    """Kept shares [layers, KV heads] as a picture."""
    from PIL import Image

    from evals.plots import draw_heads

    file = io.BytesIO()
    draw_heads({"": heads}, "", file)
    return Image.open(file)


def log(folder: Path, settings: Wandb) -> None:
    """Track a run afterwards, from its folder."""
    if not (folder / "result.json").exists():
        raise FileNotFoundError(f"{folder} is not a finished run: it has no result.json")
    with settings.follow(folder) as tracker:
        for line in read_samples(folder / "samples.jsonl"):
            tracker.sample(line)
        tracker.finish(read_json(folder / "result.json"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evals.run.tracking", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    logs = commands.add_parser("log", help="track finished runs from their folders")
    logs.add_argument("folders", nargs="+", type=Path, metavar="runs/RUN")
    logs.add_argument("--mode", choices=("auto", "online", "offline"), default="auto")
    view = commands.add_parser("dashboard", help="make the saved view of a project")
    view.add_argument("--json", action="store_true", help="print the view and save nothing (needs no key)")
    for command in (logs, view):
        command.add_argument("--entity")
        command.add_argument("--project", default="lukv")
    args = parser.parse_args(argv)
    try:
        if args.command == "log":
            for folder in args.folders:
                log(folder, Wandb(args.project, args.entity, args.mode, system_metrics=False))
                print(f"{folder}: tracked")
        else:
            from evals.run.dashboard import dashboard

            print(dashboard(args.entity, args.project, save=not args.json))
    except (OSError, ValueError, RuntimeError, ImportError) as e:
        print(f"track: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
