"""Artifacts: files are whole or not there, damaged ones are one line, and what they belong to is compared."""

from __future__ import annotations

import stat

import numpy as np
import pytest
import torch

from lukv.artifacts import check_made_for, read_tensors, reading, replace_atomically, write_atomically, write_tensors


@pytest.mark.parametrize(
    ("framework", "tensors"),
    [
        ("numpy", {"a": np.arange(6.0).reshape(2, 3), "b": np.array(7, dtype=np.int64)}),
        ("pt", {"a": torch.randn(3, 5).bfloat16(), "b": torch.zeros((), dtype=torch.float64)}),
    ],
)
def test_tensors_come_back_with_their_metadata(tmp_path, framework, tensors):
    write_tensors(tmp_path / "new" / "f.safetensors", tensors, {"kind": "größe"}, framework)
    again, metadata = read_tensors(tmp_path / "new" / "f.safetensors", framework)
    assert metadata == {"kind": "größe"}
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert (again[name] == tensor).all()


def test_a_file_has_the_mode_of_a_file_that_is_simply_opened(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "bytes", b"x")
    write_tensors(tmp_path / "tensors", {"a": np.ones(1)}, {})
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(set(modes.values())) == 1, modes


def test_after_an_error_the_old_file_is_there_and_no_draft(tmp_path):
    write_atomically(tmp_path / "f", b"old")
    with pytest.raises(KeyboardInterrupt), replace_atomically(tmp_path / "f") as draft:  # noqa: PT012
        draft.write_bytes(b"half of the n")
        raise KeyboardInterrupt
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("content", [b"", b"hello" * 30, b"\0" * 40, b"\x80\x04pickle"])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with (
        pytest.raises(ValueError, match=r"f is not a budget table: \S") as error,
        reading(tmp_path / "f", "budget table"),
    ):
        read_tensors(tmp_path / "f")
    assert "\n" not in str(error.value)


def test_an_error_of_the_system_passes_through(tmp_path):
    with pytest.raises(FileNotFoundError), reading(tmp_path / "f", "budget table"):
        read_tensors(tmp_path / "f")


def test_the_first_difference_is_named_with_the_remedy():
    made = {"scorer": "snapkv", "scorer_parameters": {"window": 32, "kernel": 7}, "more": 1}
    check_made_for(
        "t", made, {"scorer": "snapkv", "scorer_parameters": {"window": 32, "kernel": 7}}, "do it", "scorer", False
    )
    with pytest.raises(ValueError, match=r"^t was made for scorer snapkv, not for keydiff: make it with `do it`$"):
        check_made_for("t", made, {"scorer": "keydiff", "scorer_parameters": {}}, "do it", "scorer", False)
    with pytest.raises(
        ValueError, match=r"scorer_parameters {'window': 32}, not for {'window': 64}.* scorer.NAME=VALUE"
    ):
        check_made_for("t", made, {"scorer_parameters": {"window": 64, "kernel": 7}}, "do it", "scorer", False)
    with pytest.raises(ValueError, match="was made for weights_hash None, not for abc"):
        check_made_for("t", made, {"weights_hash": "abc"}, "do it", "scorer", False)
