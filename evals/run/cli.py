"""The command line's front and end: names are checked before anything runs, what goes wrong ends in one line.

Exit codes. 0: all runs are finished. 1: a fault while running. 2: the input is wrong. 130: stopped by the user.
A traceback only with debug=true.
"""

from __future__ import annotations

import io
import re
import shlex
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from evals.run import sweep
from evals.run.settings import CONF, InputError, Run, located, nearest, run_of, without_hydra
from evals.run.values import check_kinds

GROUPS = {p.name: sorted(f.stem for f in p.glob("*.yaml")) for p in CONF.iterdir() if p.is_dir() and p.name != "hydra"}


@dataclass(frozen=True)
class Planned:
    """A run that the command line asks for; `command` does it alone. `here`: in this process, as it was planned; else
    Hydra launches it."""

    run: Run
    finished: bool
    command: str
    here: bool

    @property
    def folder(self) -> Path:
        return self.run.folder


STOPPED = "stopped. What is done is kept: the same command goes on from there"

faults: dict[str, tuple[int, str]] = {}
"""What went wrong in this process: run id -> (exit code, the line)."""


def plan(argv: Sequence[str]) -> list[Planned]:
    """Compose and check every run of the command line; exit with code 2 and one line if any of them cannot be."""
    args = arguments(argv)
    if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
        return []
    folder = None if args.config_dir is None else Path(args.config_dir).resolve()
    try:
        if folder is not None and not folder.is_dir():
            raise InputError(f"--config-dir {args.config_dir} is no folder")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            search = [] if folder is None else [f"hydra.searchpath=[file://{folder}]"]
            overrides = parsed(args.overrides, known_files=folder is None)
            fixed = [o.input_line or "" for o in overrides if not o.is_sweep_override()]
            common = compose_checked(fixed, search)
            if any(o.key_or_group == "experiment" and o.is_sweep_override() for o in overrides):
                raise InputError("experiment= takes one name: each is a sweep of its own, run one after the other")
            if args.multirun or common.hydra.mode is RunMode.MULTIRUN:
                jobs = expand(args.overrides, common.hydra, known_files=folder is None)
                runs = [(composed(job, search), job) for job in jobs]
            else:
                for o in overrides:
                    if o.is_sweep_override():
                        raise InputError(f"{o.input_line} names several values: add -m to run them all")
                runs = [(resolved(common), fixed)]
            here = launches_plainly(args, overrides, common.hydra)
            planned: list[Planned] = []
            for run, job in runs:
                if all(run != p.run for p in planned):  # as without eviction, at any budget
                    command = "python run.py " + shlex.join(job)
                    planned.append(Planned(run, (run.folder / "result.json").exists(), command, here))
    except (InputError, HydraException, OmegaConfBaseException, YAMLError) as e:
        if "debug=true" in [a.lower() for a in argv]:
            raise
        stop(2, one_line(e))
    sweep.begin([p.run for p in planned])
    return planned


def arguments(argv: Sequence[str]) -> Namespace:
    """Hydra's options and the settings; what its parser says in many lines is one."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return get_args_parser().parse_args(list(argv))
    except SystemExit as e:
        if not e.code:  # --version
            raise
        line = said.getvalue().strip().rpartition("error: ")[2]
        stop(2, f"{line}. Settings are NAME=VALUE, as in method=lukv; all of them: python run.py --help")


def launches_plainly(args: Namespace, overrides: Iterable[Override], hydra: DictConfig) -> bool:
    """Whether Hydra would do no more than to compose the runs again, twice, and do one after the other in this
    process: it is asked for nothing of its own, on the command line or in conf/."""
    if args.config_name or args.config_path or args.experimental_rerun or any(o.is_hydra_override() for o in overrides):
        return False
    choices = hydra.runtime.choices
    plain = choices["hydra/launcher"] == choices["hydra/sweeper"] == "basic"
    return plain and not hydra.callbacks and not hydra.job.env_set


def spelled_out(argv: Sequence[str]) -> list[str]:
    """GROUP=OPTION:VALUE is short for an option and the one value it lacks: calibration=file:PATH, model=hf:PATH.
    ~/ after the = is the home folder, which shells leave alone there. Options such as -m may stand between settings:
    they go first, where Hydra's parser looks for them."""
    from evals.run.folder import flat

    argv = sorted(argv, key=lambda a: bool(re.match(r"[+~]*\w[^=]*=|~", a)))  # stable
    out = []
    for argument in (re.sub(r"^([\w.]+=(?:\w+:)?)~(?=/|$)", lambda m: m[1] + str(Path.home()), a) for a in argv):
        short = re.fullmatch(r"(\w+)=([\w-]+):([^,]+)", argument)
        if short and short[2] in GROUPS.get(short[1], []):
            option: Any = OmegaConf.to_container(OmegaConf.load(CONF / short[1] / f"{short[2]}.yaml"))
            lacking = [key for key, value in flat(option) if value == "???"]
            if len(lacking) == 1:
                out += [f"{short[1]}={short[2]}", f"{short[1]}.{lacking[0]}={short[3]}"]
                continue
        out.append(argument)
    return out


def parsed(texts: list[str], known_files: bool) -> list[Override]:
    """The overrides; known_files: every option of a group has to be a file in conf/."""
    overrides = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader()).parse_overrides(texts)
    if known_files:
        check_options(overrides)
    return overrides


def expand(texts: list[str], hydra: DictConfig, known_files: bool) -> list[list[str]]:
    """The overrides of each run of a sweep."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    params = [f"{k}={v}" for k, v in (hydra.sweeper.get("params") or {}).items()]
    return BasicSweeper.split_arguments(parsed([*params, *texts], known_files), None)[0]


def check_options(overrides: Iterable[Override]) -> None:
    """Every option that is chosen for a group is a file in that group's folder."""
    for o in overrides:
        options = GROUPS.get(o.key_or_group)
        if options is None or o.is_delete():
            continue
        value = o.value()
        chosen = (
            list(o.sweep_string_iterator()) if o.is_sweep_override() else value if isinstance(value, list) else [value]
        )
        if not chosen:
            raise InputError(f"{o.input_line} matches no {o.key_or_group}. Known: {', '.join(options)}")
        for name in chosen:
            if str(name).removesuffix(".yaml") not in options:
                said = "null" if name is None else str(name)
                raise InputError(
                    f"no {o.key_or_group} named '{said}'.{nearest(said, options)} Known: {', '.join(options)}"
                )


def composed(job: list[str], search: list[str]) -> Run:
    return resolved(compose_checked(job, search))


def resolved(cfg: DictConfig) -> Run:
    HydraConfig.instance().set_config(cfg)  # what ${hydra:...} refers to
    check_kinds(cfg)
    return run_of(without_hydra(cfg), cfg.hydra)


def compose_checked(overrides: list[str], search: list[str]) -> DictConfig:
    """Compose; a key that does not exist gets its nearest neighbours named."""
    try:
        return compose("config", overrides=[*search, *overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as e:
        missing = re.search(r"Could not override '([^']+)'", str(e))
        if missing is None:
            raise InputError(one_line(e) + (f" {one_line(e.__cause__)}" if e.__cause__ else "")) from e
        plain = [o for o in overrides if o.split("=")[0].lstrip("+~") in GROUPS]
        cfg = compose("config", overrides=[*search, *plain])
        key = missing.group(1)
        raise InputError(f"no setting named '{key}'.{neighbours(key, cfg)} All settings: python run.py --help") from e


def neighbours(key: str, cfg: DictConfig) -> str:
    """The nearest setting; for one inside a group the nearest of those there are in it, or all of them."""
    known = sorted({*keys(cfg), *GROUPS})
    inside, _, last = key.rpartition(".")
    beside = [k.rpartition(".")[2] for k in known if inside and k.rpartition(".")[0] == inside]
    if not beside:
        return nearest(key, known)
    return nearest(last, beside, f"{inside}.") or f" {inside} has {', '.join(beside)}."


def keys(node: Any, prefix: str = "") -> Iterable[str]:
    for key in node:
        yield prefix + str(key)
        child = None if OmegaConf.is_missing(node, key) else node._get_node(key)
        if OmegaConf.is_dict(child) and child:
            yield from keys(child, f"{prefix}{key}.")


def one_line(error: BaseException) -> str:
    """An exception's message without its line breaks and the library's own footers."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [
        line
        for line in lines
        if line and not line.startswith(("full_key:", "object_type=", "reference_type=", "See http"))
    ]
    text = " ".join(kept) or type(error).__name__
    text = re.sub(r"^Error merging override (\S+)", r"\1:", text)
    text = re.sub(r"^Error parsing override '(.*)' missing EQUAL at '<EOF>'$", r"'\1' is no NAME=VALUE", text)
    for kind, words in (("Float", "a number"), ("Integer", "a whole number")):
        text = re.sub(rf"Value '.*' of type '\w+' could not be converted to {kind}$", f"{words} is expected", text)
    text = re.sub(r"Value '.*' is not a valid bool \(type \w+\)$", "true or false is expected", text)
    return re.sub(r"^.*Missing mandatory value: (\S+).*$", r"\1 is not set: add \1=VALUE", text)


def do(asked: Run | DictConfig) -> None:
    """The job of one run, planned here or composed by Hydra. Never raises, so that a sweep goes on with the next run;
    faults are remembered."""
    run: Run | None = None
    before = signal.signal(signal.SIGTERM, terminated)
    try:
        run = asked if isinstance(asked, Run) else run_of(asked)
        located(run["job"]["_target_"])(run)
    except KeyboardInterrupt:
        stop(130, STOPPED)
    except Exception as error:
        code = 2 if isinstance(error, InputError) else 1
        worded = isinstance(error, (InputError, OSError)) or type(error) in (ValueError, RuntimeError)
        line = one_line(error) if worded else f"{type(error).__name__}: {one_line(error)}"
        if asked["debug"]:
            traceback.print_exc()
        faults[run.id if run else "?"] = (code, line)
        print(f"run.py: {line}", file=sys.stderr, flush=True)
        if run is not None:
            note_fault(run.folder, line)
    finally:
        signal.signal(signal.SIGTERM, before)
        if run is not None:
            tidy(run.folder)


def terminated(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def note_fault(folder: Path, line: str) -> None:
    """Leave the reason in the folder of a run that had begun."""
    from evals.run.folder import write_json

    if (folder / "run.json").exists():
        with suppress(OSError):  # the line is on the terminal; the disk may be what is at fault
            write_json(folder / "error.json", {"error": line})


def tidy(folder: Path) -> None:
    """Hydra makes a run's folder before the run: take it away if nothing came of it."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def summary(planned: Sequence[Planned]) -> int:
    """What became of each run of a sweep, judged by the files in its folder; the exit code of the whole command."""
    if not planned:
        return max((code for code, _ in faults.values()), default=0)
    states = [(p, *state(p)) for p in planned]
    if len(planned) > 1:
        print("\n" + summary_table(states))
    codes = [faults.get(p.folder.name, (1, ""))[0] for p, name, _ in states if name == "failed"]
    return max([*codes, *(code for code, _ in faults.values())], default=0)


def summary_table(states: Sequence[tuple[Planned, str, str]]) -> str:
    """One line a run, its score or the reason why there is none and the command that tries again."""
    lines = [f"{p.folder.name}  {name}  {what}" for p, name, what in states]
    lines += [f"failed: {p.command}" for p, name, _ in states if name == "failed"]
    count = [f"{sum(s == name for _, s, _ in states)} {name}" for name in ("done", "skipped", "failed")]
    return "\n".join([*lines, f"{len(states)} runs: {', '.join(count)}"])


def state(p: Planned) -> tuple[str, str]:
    """done, skipped (it was finished before) or failed, and the score or the reason."""
    from evals.run.folder import read_json

    if p.folder.name in faults:
        return "failed", faults[p.folder.name][1]
    result, error = p.folder / "result.json", p.folder / "error.json"
    try:
        if result.exists():
            score = read_json(result).get("score")
            return "skipped" if p.finished else "done", "" if score is None else f"{100 * score:.1f}"
        if error.exists():
            return "failed", read_json(error)["error"]
    except ValueError as e:
        return "failed", one_line(e)
    return ("failed", "no result.json: killed, or still running") if p.folder.exists() else ("done", "")


def stop(code: int, line: str) -> NoReturn:
    print(f"run.py: {line}", file=sys.stderr, flush=True)
    sys.exit(code)
