"""benchmarks/gpu.py on a machine without a GPU: its parts run at small sizes, the program says that it needs one."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks._measure import DEVICE, TINY
from benchmarks._models import model_of, twin
from benchmarks._section import Section
from lukv.backend.attention import use_ragged_attention
from lukv.backend.kernels import Kernel, pick

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="`python -m benchmarks.gpu` is the test there")


@pytest.fixture
def section():
    return Section("gpu", "GPU", Namespace(full=False))


@pytest.fixture
def models():
    stock = model_of(TINY, 2, torch.float32)
    ours = twin(stock)
    use_ragged_attention(ours)
    return stock, ours


def test_kernels(section):
    gpu.kernels(section, TINY, 256, speed=1e10, rounds=2)
    names = ["loop", "reference", *(["native"] if pick("auto", DEVICE, torch.float32, 32, 32).name == "native" else [])]
    errors = {name: next(line for line in section.lines if name in line).split("|")[-2] for name in names}
    assert max(map(float, errors.values())) <= 1e-6
    assert len(section.lines) == 1 + len(names)  # with the full cache


def test_what_fails_is_a_line_and_the_rest_goes_on(section, monkeypatch):
    def fail(*args):
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(gpu, "pick", lambda name, *a: Kernel(name, fail) if name == "reference" else pick(name, *a))
    gpu.kernels(section, TINY, 256, speed=1e10, rounds=2)
    assert "| tiny 8/4 x 32, 256, reference: failed, no such operator |" in section.lines
    assert any("256, loop" in line for line in section.lines)
    clock = gpu.Clock(section)
    clock.attempt("this", fail)
    clock.start -= 3600
    clock.attempt("that", fail)
    assert section.lines[-2:] == ["| this: failed, no such operator |", "| that: left out, the time is up |"]


def test_whole_model_and_batches(section, models):
    gpu.whole_model(section, *models, tokens=128, batch=2)
    gpu.largest_batch(section, models[1], 64, limit=4)
    assert section.lines[-1] == "| 64 | 4 | 4 |"
    assert len(section.lines) == 3


def test_profiling(section, models):
    gpu.profiling(section, models[1], 96)
    assert section.lines[0].startswith("| 96 | ")


def test_the_program_says_what_it_needs():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--record"], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout == "gpu: not run, it needs a CUDA device\n"
