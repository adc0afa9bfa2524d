"""LU-KV: KV cache eviction by predicted future utility (arXiv 2602.08585), and the one backend all methods share.

The names of the library are here (docs/library.md). Each is imported when it is first asked for, so that `import lukv`
costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.library import evaluate
    from lukv.library import answer, compress, eviction, load_cache, save_cache, stream_answer
    from lukv.model import load as load_model
    from lukv.named import method

PLACES = {
    "answer": "lukv.library.answer",
    "compress": "lukv.library.compress",
    "eviction": "lukv.library.eviction",
    "evaluate": "evals.library.evaluate",
    "load_cache": "lukv.library.load_cache",
    "load_model": "lukv.model.load",
    "method": "lukv.named.method",
    "save_cache": "lukv.library.save_cache",
    "stream_answer": "lukv.library.stream_answer",
}
"""Name -> where it lives."""

__all__ = [
    "answer",
    "compress",
    "evaluate",
    "eviction",
    "load_cache",
    "load_model",
    "method",
    "save_cache",
    "stream_answer",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("lukv")
    if name not in PLACES:
        raise AttributeError(f"module 'lukv' has no attribute {name!r}")
    module, _, attribute = PLACES[name].rpartition(".")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
