"""The command that does one run alone, whatever sweep or experiment it came from."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from evals.run.conf import list_leaves
from evals.run.overrides import quote_if_needed
from evals.run.settings import CHOSEN, Config, Run
from lukv.conf import read_method_defaults, read_option


def write_command(run: Run) -> str:
    """The shortest command that asks for this run: what its method and conf/config.yaml choose anyway is left out."""
    return shlex.join(["python", "run.py", *list_overrides(run)])


def list_overrides(run: Run) -> Iterator[str]:
    """The method, the options that are not its own, the budget, and each setting that departs from its option."""
    usual = read_method_defaults(str(run["method"]))
    if run["method"] is not None:
        yield f"method={run['method']}"
    for group in CHOSEN:
        choice = run.choices.get(group)
        if choice is not None and choice != usual.get(group):
            yield f"{group}={choice}"
    for key in ("budget", "budget_tokens", "budget_bytes", "cache_dtype", "seed", "limit", "attention"):
        if run[key] is not None and (key == "budget" or run[key] != getattr(Config, key)):
            yield f"{key}={spell(run[key])}"
    yield from (typed for typed in run.nested if typed.startswith("model.name="))  # which is no part of the identity
    for key, value in run.departures.items():
        group, _, nested = key.partition(".")
        known = dict(list_leaves(read_option(group, str(run.choices.get(group)))))
        name = key.replace("job.data.", "calibration.", 1)
        yield f"{'' if nested in known or name != key else '++'}{name}={spell(value)}"


def spell(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list):
        return f"[{','.join(map(spell, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{k}:{spell(v)}' for k, v in value.items())}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return quote_if_needed(value) if isinstance(value, str) else repr(value)
