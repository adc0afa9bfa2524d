"""Full-cache accuracy by task, with teacher forcing: each token of the answer must be the model's first choice.

    python -m models.tiny.evaluate length=512 samples=200 seed=1000

This equals greedy decoding with exact match, in one forward pass. It is stricter than RULER's metric, which gives
credit for each value found. Context and question take at most `length` - 128 tokens, as in RULER, which keeps 128 for
the answer.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from models.tiny.data import Encoder
from models.tiny.tasks import Dialogue, ask, cwe, fwe, group_by_key, needles, new_uuid, number, vt, word_key

RESERVED = 128


def _niah(
    haystack: str, keys: int = 1, values: int = 1, queries: int = 1, kind: str = "numbers", uuid_keys: bool = False
) -> Callable[[int, random.Random], Dialogue]:
    size = 15 if kind == "numbers" else 44 if uuid_keys else 30  # tokens of a needle
    new_key, new_value = new_uuid if uuid_keys else word_key, number if kind == "numbers" else new_uuid

    def draw(tokens: int, rng: random.Random) -> Dialogue:
        names = [new_key(rng) for _ in range((tokens - 32) // size if haystack == "needles" else keys)]
        pairs = [(name, new_value(rng)) for name in names for _ in range(values)]
        rng.shuffle(pairs)
        turn = ask(rng.sample(group_by_key(pairs), queries), kind)
        return needles(pairs, kind, haystack, tokens, [turn], rng)

    return draw


TASKS: dict[str, Callable[[int, random.Random], Dialogue]] = {
    "single_noise": _niah("noise"),
    "single_prose": _niah("prose"),
    "single_uuid": _niah("prose", kind="uuids"),
    "multikey_prose": _niah("prose", keys=4),
    "multikey_needles": _niah("needles"),
    "multikey_uuid": _niah("needles", kind="uuids", uuid_keys=True),
    "multivalue_noise": _niah("noise", values=4),
    "multivalue_prose": _niah("prose", values=4),
    "multiquery_noise": _niah("noise", keys=4, queries=4),
    "multiquery_prose": _niah("prose", keys=4, queries=4),
    "vt": lambda tokens, rng: vt(tokens, rng, example=1.0, sizes=[5]),
    "cwe": cwe,
    "fwe": fwe,
}


def sample(encoder: Encoder, task: str, length: int, rng: random.Random) -> tuple[list[int], list[int]] | None:
    """Token ids of a prompt (context, question, answer prefix) and of its answer. None if `length` is too short."""
    room = length - (RESERVED if length > 256 else 40)
    for size in range(room, 40, -10):
        dialogue = TASKS[task](size, rng)
        context, _ = encoder.encode_dialogue(Dialogue(dialogue.context, ()), 10**6)
        prompt, answer = encoder.encode_turn(dialogue.turns[0])
        if len(context) + len(prompt) <= room:
            return context + prompt, answer
    return None


@torch.no_grad()
def evaluate(
    model: PreTrainedModel, encoder: Encoder, length: int, samples: int, seed: int = 1_000
) -> dict[str, float]:
    """The share of samples answered exactly, by task. Tasks that do not fit into `length` are left out."""
    scores = {}
    for task in TASKS:
        rng, right = random.Random(f"tiny evaluation/{seed}/{task}"), []
        while len(right) < samples and (drawn := sample(encoder, task, length, rng)):
            prompt, answer = drawn
            ids = torch.tensor([prompt + answer], device=model.device)
            logits = model(ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
            right.append(logits.argmax(-1).tolist() == answer)
        if right:
            scores[task] = round(sum(right) / len(right), 3)
    return scores


def main(arguments: list[str]) -> None:
    folder = str(Path(__file__).parent)
    defaults = {"model": folder, "length": 512, "samples": 200, "seed": 1_000}
    settings = OmegaConf.merge(defaults, OmegaConf.from_cli(arguments))
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32, use_safetensors=True)
    encoder = Encoder(AutoTokenizer.from_pretrained(folder))
    for name, score in evaluate(model, encoder, settings.length, settings.samples, settings.seed).items():
        error = (score * (1 - score) / settings.samples) ** 0.5
        print(f"{name:18} {score:.3f} +- {1.96 * error:.3f}  (n = {settings.samples}, {settings.length} tokens)")


if __name__ == "__main__":
    main(sys.argv[1:])
