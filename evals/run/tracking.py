"""Weights & Biases beside the run folder: what a run asked for, how it goes, what came out.

    python -m evals.run.tracking log runs/RUN ...        finished runs that were made without track=wandb
    python -m evals.run.tracking dashboard [--entity E] [--project P] [--json]

The run folder stays the record. Everything here is read from its files, or handed over while they grow. So tracking
can fail, be switched off or be done later without touching a result. wandb is imported only where it is used.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.run.beside import compare_with_full
from evals.run.files import read_json, read_settings
from evals.run.folder import read_samples
from evals.run.instantiate import create
from evals.run.tags import describe_run, list_tags, name_group, name_job

if TYPE_CHECKING:
    import wandb

PREDICTIONS = ("id", "task", "question", "prediction", "references", "score", "kept_share", "error")
"""Columns of the table of predictions."""


class Tracker:
    """What `track=none` does with what it is told: nothing. `line` is a line of samples.jsonl."""

    def sample(self, line: Mapping[str, Any]) -> None:
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
    def follow(self, folder: Path, done: Sequence[Mapping[str, Any]] = ()) -> Iterator[WandbTracker]:
        """Track the run of a folder that has config.yaml and run.json. `done`: its samples from before this process.

        Raises RuntimeError if W&B cannot be reached; a W&B that is lost later on stops nothing. The W&B run ends with
        the block: as failed if that ends in an exception.
        """
        run = self._start(folder, read_json(folder / "run.json"), read_settings(folder / "config.yaml"))
        tracker = WandbTracker(run, folder, done)
        try:
            yield tracker
        except BaseException:
            tracker.close(1)
            raise
        tracker.close(0)

    def _start(self, folder: Path, about: Mapping[str, Any], config: Mapping[str, Any]) -> wandb.Run:
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        online = self.mode == "online" or (self.mode == "auto" and wandb.login(prompt=False, verify=False))
        settings = wandb.Settings(console="off", silent=True, init_timeout=30, x_disable_stats=not self.system_metrics)
        try:
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                id=make_wandb_id(about),
                resume="allow",
                name=about["run_id"],
                group=name_group(about["run_id"], config.get("seed")),
                tags=list_tags(config),
                job_type=name_job(config),
                mode="online" if online else "offline",
                dir=folder,
                config={
                    **config,
                    "job": name_job(config),
                    "provenance": dict(about),
                    "run": describe_run(about, config),
                },
                settings=settings,
            )
        except (wandb.errors.Error, OSError) as e:
            line = " ".join(str(e).split())
            raise RuntimeError(f"W&B: {line}. Go on without: track=none, or track.mode=offline") from e
        table = (config.get("allocator") or {}).get("path")
        if table and Path(table).is_file():
            declare_input(run, make_artifact(Path(table), config["model"]["name"]))
        return run


@contextmanager
def follow(
    settings: Mapping[str, Any] | None, folder: Path, done: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Tracker]:
    """Track the run of a folder in the way that its `track` settings say (conf/track/)."""
    if not settings:
        yield Tracker()
        return
    with create(settings).follow(folder, done) as tracker:
        yield tracker


def follow_finished(settings: Mapping[str, Any] | None, folder: Path) -> None:
    """Track a run after it was finished, from its folder."""
    with follow(settings, folder) as tracker:
        tell_all(tracker, folder)


def tell_all(tracker: Tracker, folder: Path) -> None:
    for line in read_samples(folder / "samples.jsonl"):
        tracker.sample(line)
    tracker.finish(read_json(folder / "result.json"))


class WandbTracker(Tracker):
    """One W&B run. Its step is the number of samples done, so that a resumed run goes on where it stopped.

    lost: why nothing reaches W&B any more, None as long as it does. The run folder loses nothing by it.
    """

    def __init__(self, run: wandb.Run, folder: Path, done: Sequence[Mapping[str, Any]] = ()) -> None:
        self._run, self._folder = run, folder
        self._scores = {line["id"]: line["score"] for line in done if "error" not in line}
        self.lost: str | None = None

    def sample(self, line: Mapping[str, Any]) -> None:
        if "error" not in line:
            self._tell(self._log_sample, line)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Tables and pictures of what evaluate or latency found, and the budget tables that calibrate made."""
        self._tell(self._log_result, result)

    def close(self, exit_code: int) -> None:
        """End the W&B run and say where it is: its address, or the command that sends it."""
        self._tell(self._run.finish, exit_code)
        if self.lost is None:
            print(f"W&B: {self._run.url or f'wandb sync {self._run.settings.sync_dir}'}", file=sys.stderr, flush=True)

    def _tell(self, call: Callable[[Any], None], what: Any) -> None:
        """Call unless W&B is lost. Its process can be killed or hang up at any time."""
        import wandb

        if self.lost is not None:
            return
        try:
            call(what)
        except Exception as error:  # those of a lost service have no common type
            self.lost = f"{type(error).__name__}: {' '.join(str(error).split())}"
            again = f"python -m evals.run.tracking log {self._folder}"
            print(
                f"W&B is lost ({self.lost}). The run goes on without; afterwards: {again}", file=sys.stderr, flush=True
            )
            with suppress(Exception):  # else the next run would be told to the same dead process
                wandb.teardown()

    def _log_sample(self, line: Mapping[str, Any]) -> None:
        self._scores[line["id"]] = line["score"]
        running = {"running/score": sum(self._scores.values()) / len(self._scores)}
        running |= {f"running/{k}": v for k, v in line.get("times", {}).items() if k not in ("batch", "shared")}
        self._run.log(running, step=len(self._scores))

    def _log_result(self, result: Mapping[str, Any]) -> None:
        import wandb

        media: dict[str, Any] = {}
        samples = read_samples(self._folder / "samples.jsonl")
        if samples:
            data = [[join_list(line.get(column)) for column in PREDICTIONS] for line in samples]
            media["predictions"] = wandb.Table(columns=list(PREDICTIONS), data=data)
        if result.get("tasks"):
            bars = wandb.Table(columns=["task", "score"], data=[[t, r["score"]] for t, r in result["tasks"].items()])
            media["tasks"] = wandb.plot.bar(bars, "task", "score", title="Score per task")
        heads = result.get("budget", {}).get("heads")
        if heads:
            media["heads/kept_share"] = wandb.Image(draw_heads(heads), caption="kept share: layer down, KV head across")
        rows = result.get("rows")
        if rows:
            media["latency"] = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        if media:
            self._run.log(media, step=len(self._scores))
        self._run.summary.update(summarize(result) | compare_with_full(self._folder, result, samples))
        for path in sorted(self._folder.glob("tables/*.safetensors")):
            self._run.log_artifact(make_artifact(path, self._run.config["model"]["name"]))


def summarize(result: Mapping[str, Any]) -> dict[str, float]:
    """result.json under flat names: score/, tasks/, cost/. The dashboard plots these."""
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


def join_list(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def make_wandb_id(about: Mapping[str, Any]) -> str:
    """The same id for every process that works on this run. It changes with any setting that can change the result."""
    return hashlib.sha256(f"{about['run_id']} {about['config_hash']}".encode()).hexdigest()[:16]


def make_artifact(path: Path, model: str) -> wandb.Artifact:
    """The artifact of a table file. W&B knows it by its content: what calibrate made is what evaluate uses."""
    import wandb

    artifact = wandb.Artifact(f"budgets-{model}-{path.stem}", type="budget-table")
    artifact.add_file(str(path), name=path.name)
    return artifact


def declare_input(run: wandb.Run, artifact: wandb.Artifact) -> None:
    """Declare an artifact as the run's input. W&B's own use_artifact refuses offline, but the note that it makes online
    can be made offline too."""
    if run.offline:
        run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
    else:
        run.use_artifact(artifact)


def draw_heads(heads: Sequence[Sequence[float]]) -> Any:
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
        tell_all(tracker, folder)
    if tracker.lost is not None:
        raise RuntimeError(f"W&B: {tracker.lost}")


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
            from evals.run.dashboard import make_dashboard

            print(make_dashboard(args.entity, args.project, save=not args.json))
    except (OSError, ValueError, RuntimeError, ImportError) as e:
        print(f"track: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
