"""The command line: what it asks for is checked before anything runs, and what goes wrong ends in one line.

Exit codes. 0: all runs are finished. 1: a fault while running. 2: the input is wrong. 130: stopped by the user.
A traceback only with debug=true. `run.py --help` imports this module, so nothing heavy is imported here.
"""

from __future__ import annotations

import io
import shlex
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import NoReturn

from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from evals.run.compose import check_hydra, check_run, compose_config, compose_run, join_lines
from evals.run.instantiate import InputError
from evals.run.overrides import expand_sweep, parse_overrides
from evals.run.provenance import find_version
from evals.run.run_id import find_job
from evals.run.settings import Run, resolve_run
from evals.run.signals import survive_closed_pipe
from evals.run.sweep import Fault, PlannedRun, Sweep
from lukv.conf import CONF

STOPPED = "stopped. What is done is kept: the same command goes on from there"


def plan(argv: Sequence[str]) -> Sweep:
    """Compose and check every run of the command line. Exits with code 2 and one line if any of them cannot be."""
    args = parse_arguments(argv)
    if args.help or args.hydra_help or args.shell_completion:
        return Sweep()
    try:
        check_modes(args)
        folder = None if args.config_dir is None else Path(args.config_dir).resolve()
        if folder is not None and not folder.is_dir():
            raise InputError(f"--config-dir {args.config_dir} is no folder")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return plan_runs(args, folder)
    except (InputError, HydraException, OmegaConfBaseException, YAMLError) as e:
        if "debug=true" in [a.lower() for a in argv]:
            raise
        stop(2, join_lines(e))


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """Hydra's options and the settings. What its parser says in many lines becomes one."""
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            return get_args_parser().parse_args(list(argv))
    except SystemExit as e:
        if not e.code:  # --version
            print(f"LU-KV {find_version('lukv') or '(not installed)'}")
            raise
        line = said.getvalue().strip().rpartition("error: ")[2]
        stop(2, f"{line}. Settings are NAME=VALUE, as in method=lukv; all of them: python run.py --help")


def check_modes(args: Namespace) -> None:
    """Hydra's own check of these ends in a traceback."""
    modes = {"--run": args.run, "-m": args.multirun, "--cfg": args.cfg, "--info": args.info}
    if len(asked := [mode for mode, given in modes.items() if given]) > 1:
        raise InputError(f"{' and '.join(asked)} do not go together: leave one of them out")
    if args.resolve and not args.cfg:
        raise InputError("--resolve goes with --cfg: python run.py --cfg job --resolve")


def plan_runs(args: Namespace, folder: Path | None) -> Sweep:
    """The runs that the arguments ask for, each once. folder: configs of the user's own, beside conf/."""
    search = [] if folder is None else [f"hydra.searchpath=[file://{folder}]"]
    overrides = parse_overrides(args.overrides, known_files=folder is None)
    if args.cfg or args.info:  # Hydra shows it
        compose_config(args.overrides, search)
        return Sweep()
    swept = [o for o in overrides if o.is_sweep_override()]
    fixed = [o.input_line or "" for o in overrides if not o.is_sweep_override()]
    common = compose_config(fixed, search)
    check_hydra(common)
    if any(o.key_or_group == "experiment" for o in swept):
        raise InputError("experiment= takes one name: each is a sweep of its own, run one after the other")
    runs: list[tuple[Run, list[str]]] = []
    if args.multirun or common.hydra.mode is RunMode.MULTIRUN:
        jobs = expand_sweep(args.overrides, common.hydra, known_files=folder is None)
        runs = [(compose_run(job, search), job) for job in jobs]
    elif swept:
        raise InputError(f"{swept[0].input_line} names several values: add -m to run them all")
    else:
        runs = [(check_run(common), fixed)]
    planned: list[PlannedRun] = []
    for task, (run, job) in enumerate(runs):
        if all(run.id != p.run.id for p in planned):  # without eviction a run is the same at any budget
            finished = (run.folder / "result.json").exists()
            planned.append(PlannedRun(run, finished, "python run.py " + shlex.join(job), task))
    slurm = common.hydra.runtime.choices["hydra/launcher"] == "submitit_slurm"
    logs = str(common.hydra.launcher.submitit_folder) if slurm else None
    return Sweep(planned, launches_plainly(args, overrides, common.hydra), logs)


def launches_plainly(args: Namespace, overrides: Iterable[Override], hydra: DictConfig) -> bool:
    """Whether Hydra would only compose the runs again and do one after the other in this process.

    That is so if nothing is asked of Hydra itself, on the command line or in conf/.
    """
    if args.config_name or args.config_path or args.experimental_rerun or any(o.is_hydra_override() for o in overrides):
        return False
    choices = hydra.runtime.choices
    plain = choices["hydra/launcher"] == choices["hydra/sweeper"] == "basic"
    return plain and not hydra.callbacks and not hydra.job.env_set


def do(asked: Run | DictConfig, sweep: Sweep) -> None:
    """Do the job of one run, planned here or composed by Hydra.

    Never raises, so that a sweep goes on with the next run. A fault is printed, and noted in the sweep and the folder.
    """
    run: Run | None = None
    before = signal.signal(signal.SIGTERM, raise_interrupt)
    try:
        run = asked if isinstance(asked, Run) else resolve_run(asked)
        run.look_again()
        with survive_closed_pipe():
            find_job(run.config)(run, sweep).do()
    except KeyboardInterrupt:
        stop(130, STOPPED)
    except Exception as error:
        if asked["debug"]:
            traceback.print_exc()
        fault = describe_fault(error)
        if fault not in sweep.faults.values():  # one cause may stop many runs
            print(f"run.py: {fault.line}", file=sys.stderr, flush=True)
        sweep.faults[run.id if run else "?"] = fault
        if run is not None:
            note_fault(run.folder, fault.line)
    finally:
        signal.signal(signal.SIGTERM, before)
        if run is not None:
            remove_if_empty(run.folder)


def raise_interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def describe_fault(error: Exception) -> Fault:
    """Exceptions of these kinds are worded for the user. The name of any other kind is part of what it says."""
    worded = isinstance(error, (InputError, OSError)) or type(error) in (ValueError, RuntimeError)
    line = join_lines(error)
    return Fault(2 if isinstance(error, InputError) else 1, line if worded else f"{type(error).__name__}: {line}")


def note_fault(folder: Path, line: str) -> None:
    """Leave the reason in the folder of a run that had begun."""
    from evals.run.files import write_json

    if (folder / "run.json").exists():
        with suppress(OSError):  # the line is on the terminal; the disk may be what is at fault
            write_json(folder / "error.json", {"error": line})


def remove_if_empty(folder: Path) -> None:
    """Hydra makes a run's folder before the run: take it away if nothing came of it."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def stop(code: int, line: str) -> NoReturn:
    print(f"run.py: {line}", file=sys.stderr, flush=True)
    sys.exit(code)
