"""From what is typed to Hydra's overrides: short forms, quotes, and options that have to be files in conf/.

`run.py --help` imports this module, so nothing heavy is imported here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from evals.run.compose import check_plugin
from evals.run.conf import flatten
from evals.run.instantiate import InputError
from evals.run.old_names import translate_override
from lukv.conf import GROUPS, read_option
from lukv.names import suggest_nearest

PLAIN = re.compile(r"[\w./:~@%+-]+", re.ASCII)
"""A value that means the same with and without quotes."""


def normalize_arguments(argv: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them.

    GROUP=OPTION:VALUE is short for an option and the one value it lacks: calibration=file:PATH, model=hf:PATH. VALUE is
    taken as it stands, commas and all. A ~/ after the = is the home folder, which shells leave alone there. Options
    such as -m may stand between settings: they go first, where Hydra's parser looks for them. Old names of settings
    become the new ones.
    """
    argv = sorted(argv, key=lambda a: bool(re.match(r"[+~]*\w[^=]*=|~", a)))  # stable
    out = []
    for typed in argv:
        argument = re.sub(r"^([\w.]+=(?:\w+:)?)~(?=/|$)", lambda m: m[1] + str(Path.home()), translate_override(typed))
        short = re.fullmatch(r"(\w+)=([\w-]+):(.+)", argument)
        if short and short[2] in GROUPS.get(short[1], []):
            lacking = [key for key, value in flatten(read_option(short[1], short[2])) if value == "???"]
            if len(lacking) == 1:
                out += [f"{short[1]}={short[2]}", f"{short[1]}.{lacking[0]}={quote_if_needed(short[3])}"]
                continue
        out.append(argument)
    return out


def quote_if_needed(value: str) -> str:
    """The value as Hydra reads back exactly that text. One that is quoted already stays as it is."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value if quoted or PLAIN.fullmatch(value) else quote(value)


def quote(value: str) -> str:
    """In single quotes, as Hydra's grammar has them: a backslash counts only before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value) + "'"


def quote_for_shell(text: str) -> str:
    """In double quotes where nothing in it means anything to a shell there."""
    return shlex.quote(text) if re.search(r'["$`!]|\\\\', text) else f'"{text}"'


def parse_overrides(texts: Sequence[str], known_files: bool) -> list[Override]:
    """Hydra's overrides. known_files: every option of a group has to be a file in conf/."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides = [parse_override(parser, text) for text in texts]
    for o in overrides:
        if not o.is_delete():
            check_plugin(o.key_or_group, o.value())
    if known_files:
        check_options(overrides)
    return overrides


def parse_override(parser: OverridesParser, text: str) -> Override:
    """Raises InputError that shows the text with its value in quotes, where quotes are what it lacks."""
    name, equals, value = text.partition("=")
    try:
        return parser.parse_overrides([text])[0]
    except HydraException as error:
        if not equals:
            raise
        quoted = f"{name}={quote(value)}"
        try:
            parser.parse_overrides([quoted])
        except HydraException:
            near = suggest_nearest(name, list(GROUPS))
            raise InputError(f"'{text}' is no NAME=VALUE: '{name}' cannot be a setting's name.{near}") from error
        raise InputError(
            f"{text}: a value with =, brackets, commas or letters beyond a-z is put in quotes, and the argument in "
            f"quotes of the shell: {quote_for_shell(quoted)}"
        ) from error


def expand_sweep(texts: Sequence[str], hydra: DictConfig, known_files: bool) -> list[list[str]]:
    """The overrides of each run of a sweep, those of the experiment's yaml included."""
    params = [translate_override(f"{k}={v}") for k, v in (hydra.sweeper.get("params") or {}).items()]
    return BasicSweeper.split_arguments(parse_overrides([*params, *texts], known_files), None)[0]


def check_options(overrides: Iterable[Override]) -> None:
    """Raise InputError unless every option that is chosen for a group is a file in that group's folder."""
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
                near = suggest_nearest(said, options)
                raise InputError(f"no {o.key_or_group} named '{said}'.{near} Known: {', '.join(options)}")
