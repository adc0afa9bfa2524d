"""Scorers of keys and values alone, against their definitions by hand and in plain loops."""

import torch

from baselines.keynorm import KeyNorm
from lukv.scoring import PromptLayer


def prompt(keys, values=None, index=0):
    return PromptLayer(index, 2, keys, keys if values is None else values, len(keys), 0.5)


def random_keys(heads, tokens, dim, seed=0):
    return torch.randn(heads, tokens, dim, generator=torch.Generator().manual_seed(seed))


def test_keynorm_by_hand():
    keys = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]])
    assert KeyNorm().score(prompt(keys)).tolist() == [[-5.0, -1.0, -10.0]]


def test_keynorm_of_half_precision():
    """A float16 key of length 80 000 has no float16 norm."""
    keys = random_keys(1, 10, 64).sign() * 1e4
    assert torch.equal(KeyNorm().score(prompt(keys.half())), KeyNorm().score(prompt(keys)))
