"""From settings to objects: the model, the method, the tracker. What cannot be built is an InputError."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

from evals.run.instantiate import InputError, create
from evals.run.settings import TURN, Run, drop_tables
from evals.run.waiting import explain_wait
from lukv.allocation import Budget
from lukv.backend.cache import check_readers
from lukv.backend.options import Later
from lukv.checkpoint import Source
from lukv.conf import GROUPS, read_method_defaults, read_option
from lukv.model import LoadedModel, load
from lukv.named import check_fits, make_byte_budget
from lukv.selection import Eviction, keep_everything


class Method(NamedTuple):
    """The three parts of a method, as its settings make them."""

    scorer: Any
    allocator: Any
    protection: Any


@contextmanager
def input_errors(run: Run) -> Iterator[None]:
    """Turn what is raised while objects are built into InputError. Raised later on, the same is the run's fault."""
    try:
        yield
    except (ValueError, OSError, ImportError, TypeError) as e:
        raise InputError(name_model_as_asked(str(e), run)) from e


def name_model_as_asked(message: str, run: Run) -> str:
    """The message, with the model as this run's command line names it, and with the methods that need no file made for
    it: lukv/ knows only the model's name."""
    model = shlex.join([f"model={run.choices['model']}", *(n for n in run.nested if n.startswith("model."))])
    message = re.sub(r"(?<=run\.py job=calibrate )model=\S+", lambda _: model, message)
    if re.match(r"no .* at .*: make it with", message):
        first, *others = sorted(list_ready_methods(), key=lambda method: method != run.choices.get("scorer"))
        message += f". Without one: method={first}, or {', '.join(others)}"
    return message


def list_ready_methods() -> list[str]:
    """The methods that evict and read no file: they work at once with any model."""
    usual = {method: read_method_defaults(method) for method in GROUPS["method"]}
    parts = {m: [read_option(g, u.get(g) or "") for g in ("scorer", "allocator")] for m, u in usual.items()}
    return [m for m in parts if usual[m].get("scorer") and not any("path" in part for part in parts[m])]


def check_model(run: Run) -> None:
    """Say first of all if there is no model where the run looks for it."""
    model = run["model"]
    Source(str(model["path"]), model.get("revision"), model.get("made_by")).must_exist()


def get_model(run: Run) -> LoadedModel:
    return load_model(select_model_settings(run))


def select_model_settings(run: Run) -> str:
    """What decides which model is loaded, as JSON."""
    return json.dumps({**drop_tables(run["model"]), "attention": run["attention"]})


@lru_cache(maxsize=1)
def load_model(settings: str) -> LoadedModel:
    """Loaded once for all runs of a sweep that name the same model."""
    asked = json.loads(settings)
    with explain_wait(f"loading {asked['name']} from {asked['path']}"):
        return load(**asked)


def describe_model(model: LoadedModel) -> dict[str, Any]:
    """What run.json says about the model as it was read."""
    return {
        "model_commit": model.commit,
        "weights_hash": model.weights_hash,
        "model_caveats": list(model.caveats),
    }


def build_method(run: Run) -> Method | None:
    """The method's parts; None keeps everything. They need no model: a missing table, or a method that cannot evict
    while answering, is said before one is loaded."""
    if not run.evicts:
        return None
    method = Method(*(create(run[part]) for part in Method._fields))
    if run["decoding"]:
        check_later(run, method)
    return method


def build_eviction(run: Run, method: Method | None, model: LoadedModel) -> Eviction | None:
    """The method at the run's budget, checked for the model; None keeps everything as it is."""
    eviction = keep_everything(run["cache_dtype"])
    if method is not None:
        eviction = Eviction(*method, build_budget(run, model), run["cache_dtype"])
    if eviction is not None:
        check_fits(eviction, model)
    return eviction


def build_budget(run: Run, model: LoadedModel) -> Budget:
    if run["budget_bytes"] is not None:
        return make_byte_budget(run["budget_bytes"], run["cache_dtype"], model)
    return Budget(run["budget"], run["budget_tokens"])


def check_later(run: Run, method: Method) -> None:
    """Raise InputError for a method that cannot evict while answering, or not down to the size that is asked for."""
    asked, scorer = f"decoding={run.choices['decoding']}", f"scorer={run.choices['scorer']}"
    instead = "choose another, or decoding=none"
    if method.scorer.needs_answer:
        raise InputError(f"{asked}: {scorer} has to know the whole answer before it evicts: {instead}")
    if method.scorer.makes_passes:
        raise InputError(f"{asked}: {scorer} asks for extra passes over a whole cache, once it is evicted: {instead}")
    if method.allocator.compares_layers:
        raise InputError(
            f"{asked}: allocator={run.choices['allocator']} compares all layers, which are evicted one after the other "
            f"while answering: {instead}"
        )
    tokens, protection = run["decoding"].get("tokens"), method.protection.over(method.scorer)
    if tokens is not None and tokens < protection.sink + protection.recent:
        raise InputError(
            f"decoding.tokens={tokens} is less than the {protection.sink + protection.recent} that {scorer} and its "
            f"protection keep in any case (the first {protection.sink}, the last {protection.recent}): give more"
        )


def build_later(run: Run, method: Method | None, model: LoadedModel) -> Later | None:
    """What evicts while the run answers; None: nothing. Raises ValueError for a model that it cannot work on."""
    decoding = run["decoding"]
    if method is None or not decoding:
        return None
    check_readers(model.model, evicts=decoding["every"] != TURN)
    share, tokens = decoding.get("share"), decoding.get("tokens")
    as_prompt = share is None and tokens is None
    budget = build_budget(run, model) if as_prompt else Budget(share, tokens)
    every = None if decoding["every"] == TURN else decoding["every"]
    return Later(Eviction(*method, budget, run["cache_dtype"]), every=every)


def check_turns(run: Run, turns: bool) -> None:
    """Raise InputError where a run is to evict after every turn and there are none. turns: whether there are."""
    if run["decoding"] and run["decoding"]["every"] == TURN and not turns:
        raise InputError(
            "decoding.every=turn evicts after each turn of a conversation, and here is none: benchmark=conversation "
            "has some; decoding=share and decoding=size evict after so many tokens"
        )


def check_tracker(run: Run) -> None:
    """Say before a model is loaded if the tracker cannot be made."""
    if run["track"]:
        create(run["track"])
