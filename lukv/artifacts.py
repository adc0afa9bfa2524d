"""Files that outlive a process: written whole or not at all, read with one kind of error, and what they belong to.

The run folders use this module too, and they need neither torch nor safetensors to show a finished run. So the imports
of safetensors are inside the functions that need them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from lukv.scoring import Scorer
    from lukv.selection import Protection

Framework = Literal["numpy", "pt"]
"""The arrays that a file is read into or written from: numpy's, or PyTorch's (which has bfloat16)."""


@contextmanager
def replace_atomically(path: str | Path) -> Iterator[Path]:
    """Yield the path of a draft for the block to write. It replaces the file once the block has ended without an error;
    until then, and after an error, the old file stays as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.touch()
        mode = draft.stat().st_mode
        yield draft
        draft.chmod(mode)  # safetensors writes files that only their owner may read
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: bytes) -> None:
    """The file is either the old one or the whole new one, whatever happens in between."""
    with replace_atomically(path) as draft:
        draft.write_bytes(content)


def write_tensors(
    path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str], framework: Framework = "numpy"
) -> None:
    """Write a safetensors file atomically. Raises OSError where it cannot be written."""
    from safetensors import SafetensorError, numpy, torch

    save_file: Callable[..., None] = torch.save_file if framework == "pt" else numpy.save_file
    with replace_atomically(path) as draft:
        try:
            save_file(dict(tensors), draft, dict(metadata))
        except SafetensorError as error:  # how it reports a full disk
            raise OSError(f"cannot write {path}: {error}") from error


def read_tensors(path: str | Path, framework: Framework = "numpy") -> tuple[dict[str, Any], dict[str, str]]:
    """All tensors of a safetensors file and its metadata. Call it inside `reading`, which explains a damaged file."""
    from safetensors import safe_open

    with safe_open(path, framework=framework) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        return tensors, file.metadata() or {}


@contextmanager
def reading(path: str | Path, kind: str) -> Iterator[None]:
    """A damaged file becomes one line: ValueError, `PATH is not a KIND: the reason`. OSError passes through.

    Damaged files raise errors of no common type: safetensors has its own, numpy's reader even SyntaxError.
    """
    try:
        yield
    except OSError:  # the file may be sound, but this process cannot read it
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a {kind}: {' '.join(str(error).split())}") from error


def require(path: Path, kind: str) -> None:
    """Raise FileNotFoundError, with the command that makes the file, unless there is one at MODEL/tables/SCORER.*."""
    if not path.is_file():
        command = calibrate_command(model_name(path), path.name.split(".")[0])
        raise FileNotFoundError(f"no {kind} at {path}: make it with `{command}`")


class Target(Protocol):
    """The model that a table or a probe is made for; lukv.model.LoadedModel is one."""

    @property
    def name(self) -> str: ...

    @property
    def config_hash(self) -> str: ...

    @property
    def weights_hash(self) -> str: ...

    @property
    def layers(self) -> int: ...

    @property
    def kv_heads(self) -> int: ...


def describe_model(model: Target) -> dict[str, Any]:
    """The metadata of whatever belongs to one model. A model that was trained further is another model: its heads may
    have other tasks, and nothing but the hash of its weights would tell."""
    return {"config_hash": model.config_hash, "weights_hash": model.weights_hash}


def describe(model: Target, scorer: Scorer, protection: Protection) -> dict[str, Any]:
    """The metadata of what belongs to one model, one scorer with its parameters, and one protection."""
    whole = protection.over(scorer)
    return {
        **describe_model(model),
        "scorer": scorer.name,
        "scorer_parameters": scorer.parameters(),
        "sink": whole.sink,
        "recent": whole.recent,
    }


def check_made_for(
    path: str | Path,
    metadata: Mapping[str, Any],
    wanted: Mapping[str, Any],
    command: str,
    part: str,
    any_weights: bool,
) -> None:
    """Raise ValueError unless the artifact's metadata holds every entry of `wanted`; with `any_weights` the weights are
    not compared. The message names the first that differs and the `command` that makes a fitting artifact. part: of the
    method (scorer or allocator), whose setting any_weights is."""
    for key, value in wanted.items():
        made = metadata.get(key)
        if made == value or (any_weights and key == "weights_hash"):
            continue
        remedy = f"make it with `{command}`"
        if isinstance(made, dict) and isinstance(value, dict):  # show only the parameters that differ
            changed = [name for name in sorted({*made, *value}) if made.get(name) != value.get(name)]
            made, value = ({name: each.get(name) for name in changed} for each in (made, value))
            remedy += " and the scorer.NAME=VALUE of this run"
        if key == "weights_hash":
            remedy += f", or take it for these weights too, with {part}.any_weights=true"
        raise ValueError(f"{path} was made for {key} {made}, not for {value}: {remedy}")


def model_name(path: Path) -> str:
    """The model's name in tables/MODEL/SCORER.safetensors and in MODEL/tables/SCORER.safetensors."""
    folder = path.absolute().parent
    return folder.name if folder.parent.name == "tables" else folder.parent.name if folder.name == "tables" else "MODEL"


def calibrate_command(model: str, scorer: str) -> str:
    return f"python run.py job=calibrate model={model} scorer={scorer} job.save=true"
