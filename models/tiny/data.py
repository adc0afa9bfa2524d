"""Dialogues as training rows, rendered and cut exactly as evaluation renders and cuts them.

A row is one context and as many questions about it as fit, which gives many supervised tokens per context. The data of
step `s` are drawn from a generator seeded with the text "tiny/<seed>/<s>". So a resumed run sees the same data, and no
evaluation or calibration sample (these have integer seeds) shares its stream.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from models.tiny.plan import Plan
from models.tiny.tasks import FAMILIES, Dialogue, Turn
from models.tiny.tokenizer import ASSISTANT, BEGIN, END, USER

ANSWER, TEXT = 1.0, 0.1
"""Weights that mark answer tokens, and all other tokens, most of which nothing predicts. Padding has weight 0."""

REDRAWS = 100
"""How often a row in which no answer begins is drawn again."""


class Encoder:
    """Dialogues as token ids and loss weights, cut exactly where evaluation cuts them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.convert_tokens_to_ids(END)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode_turn(self, turn: Turn) -> tuple[list[int], list[int]]:
        """(question to the end of the answer prefix, answer with its end)."""
        prompt = self.encode(f"{turn.question}{END}{ASSISTANT}{turn.prefix}")
        return prompt, [*self.encode(turn.answer), self.end]

    def encode_dialogue(self, dialogue: Dialogue, length: int) -> tuple[list[int], list[float]]:
        """As many turns as fit into `length` tokens; the last one may be cut."""
        ids = self.encode(f"{BEGIN}{USER}{dialogue.context}")
        weights = [TEXT] * len(ids)
        for index, turn in enumerate(dialogue.turns):
            prompt, answer = self.encode_turn(turn)
            prompt = self.encode(USER) * (index > 0) + prompt
            ids += prompt + answer
            weights += [TEXT] * len(prompt) + [ANSWER] * len(answer)
            if len(ids) >= length:
                break
        return ids[:length], weights[:length]


class Rows(Dataset):
    """The rows of each step: ids, weights, and a seed for choosing the other tokens that enter the loss. They depend on
    (seed, step) only."""

    def __init__(self, encoder: Encoder, plan: Plan, seed: int) -> None:
        self.encoder, self.plan, self.seed = encoder, plan, seed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, int]:
        cycle, phase = self.plan.at(step)
        length = phase.lengths[step % len(phase.lengths)]
        rng = random.Random(f"tiny/{self.seed}/{step}")
        ids, weights = draw_batch(self.encoder, cycle.tokens // length, length, dict(phase.mixture), rng)
        return torch.from_numpy(ids), torch.from_numpy(weights), rng.getrandbits(60)


def draw_batch(
    encoder: Encoder, rows: int, length: int, mixture: dict[str, float], rng: random.Random
) -> tuple[np.ndarray, np.ndarray]:
    """ids int64 [rows, length], weights float32 [rows, length] (0 where padded)."""
    ids, weights = np.zeros((rows, length), np.int64), np.zeros((rows, length), np.float32)
    for row in range(rows):
        family = rng.choices(list(mixture), list(mixture.values()))[0]
        for _ in range(REDRAWS):
            dialogue = FAMILIES[family](int(length * rng.uniform(0.4, 0.9)), rng)
            row_ids, row_weights = encoder.encode_dialogue(dialogue, length)
            if ANSWER in row_weights:  # some of an answer is inside
                break
        else:
            raise ValueError(f"{family} does not fit into rows of {length} tokens: context and question are longer")
        ids[row, : len(row_ids)], weights[row, : len(row_ids)] = row_ids, row_weights
    return ids, weights
