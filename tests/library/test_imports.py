"""What `import lukv` costs, and what the library never imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lukv
from tests.as_typed import ROOT

MACHINERY = {"hydra", "omegaconf", "wandb", "submitit", "matplotlib", "datasets", "evals.run.settings", "evals.report"}

USE = """
from transformers import AutoModelForCausalLM, AutoTokenizer
import lukv, lukv.pipeline
model = AutoModelForCausalLM.from_pretrained("models/tiny", use_safetensors=True).eval()
tokenizer = AutoTokenizer.from_pretrained("models/tiny")
for name in ("lukv", "lukv_plus"):
    method = lukv.method(name, budget=0.5, model=model)
    cache = lukv.compress(model, tokenizer, "Ann lives in Oslo. " * 10, method)
    lukv.answer(model, tokenizer, cache, "Where?", max_new_tokens=2)
    with lukv.eviction(model, method):
        model.generate(**tokenizer("Ann lives in Oslo. " * 10, return_tensors="pt"), max_new_tokens=2)
settings = {"benchmark.length": 512, "benchmark.tasks": ["niah_single_1"]}
lukv.evaluate(model, tokenizer, "ruler", ["lukv"], [0.5], limit=1, settings=settings)
"""


def modules(program: str) -> set[str]:
    """The names of all modules that the program has imported at its end."""
    program += "\nimport sys; print(chr(10).join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_lukv_imports_nothing_heavy() -> None:
    found = modules("import lukv\nassert 'method' in dir(lukv)")
    assert {
        name for name in found if name.split(".")[0] in ("torch", "transformers", "numpy", "yaml", "evals")
    } == set()


def test_the_library_imports_no_experiment_machinery() -> None:
    assert modules(USE) & MACHINERY == set()


def test_every_public_name_is_there() -> None:
    assert set(lukv.__all__) == set(lukv.PLACES) <= set(dir(lukv))
    assert all(callable(getattr(lukv, name)) for name in lukv.__all__)
    assert lukv.__version__
    with pytest.raises(AttributeError, match="module 'lukv' has no attribute 'no_such'"):
        lukv.no_such  # noqa: B018
