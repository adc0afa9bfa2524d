"""What is asked of a model, as far as it can be checked without torch: known names, and whether its folder is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

DTYPES = ("float64", "float32", "bfloat16", "float16")
SPECIAL_TOKENS = ("text", "control")


def list_kernels() -> list[str]:
    """The names of all decode kernels: one for each module of lukv.backend.kernels, but for those that begin with _."""
    return sorted(path.stem for path in Path(__file__).parent.glob("backend/kernels/[!_]*.py"))


def check_names(
    dtype: str = "auto", attention: str = "auto", device: str = "auto", special_tokens: str = "text"
) -> None:
    """Raise ValueError for a name that is not known."""
    if dtype not in ("auto", *DTYPES):
        raise ValueError(f"dtype={dtype} is not known: choose one of auto, {', '.join(DTYPES)}")
    if attention not in ("auto", *list_kernels()):
        raise ValueError(f"attention={attention} is not a kernel: choose one of auto, {', '.join(list_kernels())}")
    if special_tokens not in SPECIAL_TOKENS:
        raise ValueError(f"special_tokens={special_tokens} is not known: choose one of {', '.join(SPECIAL_TOKENS)}")
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or not (number.isdecimal() or number == ""):
        raise ValueError(f"device={device} is not known: choose one of auto, cpu, cuda, cuda:N")


def check_chunk(prefill_chunk: int | None) -> None:
    """Raise ValueError for what is no number of tokens."""
    if prefill_chunk is not None and (not isinstance(prefill_chunk, int) or prefill_chunk < 1):
        raise ValueError(f"prefill_chunk={prefill_chunk} must be at least 1 token, or null: the whole prompt at once")


def is_gguf(path: str | Path) -> bool:
    """Whether a path names a GGUF file, there or not."""
    path = Path(path)
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def is_local(path: str, made_by: str | None = None) -> bool:
    """Whether a model is a folder or file, there or not; anything else is a hub id."""
    named = path.startswith((".", "/", "~")) or path.count("/") > 1 or is_gguf(path)
    return named or made_by is not None or Path(path).exists()


def check_there(model: str, made_by: str | None = None, holds: str = "config.json") -> None:
    """Raise FileNotFoundError where a folder or file should be and is not; ValueError for an adapter. Nothing is read,
    and a hub id passes. holds: the file that a folder must have. made_by: the command that makes the folder."""
    path = Path(model)
    if (path / "adapter_config.json").is_file():
        raise ValueError(
            f"model {model}: it is a PEFT adapter, not a model: merge it into its model (merge_and_unload) and "
            "save that. Prompt, prefix and P-tuning cannot be merged and are not supported"
        )
    if not is_local(model, made_by) or (path.is_file() if is_gguf(path) else (path / holds).is_file()):
        return
    lacks = f"there is no such {'file' if is_gguf(path) else 'folder'}"
    if path.exists():
        lacks = f"it has no {holds}" if path.is_dir() else "it is not a folder"
    instead = "give a folder written by save_pretrained, a file named *.gguf, or a hub id"
    if made_by:
        instead = f"make it with: {made_by}"
    raise FileNotFoundError(f"model {model}: {lacks} ({instead})")


def check_settings(model: Mapping[str, Any], attention: str) -> None:
    """Of the settings of conf/model: raise what `lukv.model.load` would, as far as that needs no torch."""
    check_names(attention=attention, **{k: model[k] for k in ("dtype", "device", "special_tokens") if k in model})
    check_chunk(model.get("prefill_chunk"))
    check_there(str(model["path"]), model.get("made_by"))
