"""What each attention head does, measured: previous-token, induction, duplicate, local, sink and retrieval heads.

    python -m scripts.studies.heads                # -> models/tiny/heads.json, docs/figures/heads.png

Each pattern is a share of one query head's attention, from 0 to 1, averaged over query rows and texts:

    look_back    on the one distance of 1 to 8 tokens that gets most; `distance` says which
    local        on the token itself and the 15 tokens before it
    sink         on the first four tokens, from rows behind the 64th
    induction    on the two tokens after the same token's first occurrence, in random tokens written twice
    duplicate    on the first occurrence itself, in the same text
    retrieval    on the needle's token that the decode step is about to say, and on the next token, into which the
                 previous-token heads of earlier layers have copied it

The first three are measured in the contexts of RULER's prompts, retrieval in whole prompts with their answers. The
seeds are not those of evaluation, calibration or training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.ruler import Ruler
from lukv.artifacts import write_atomically
from lukv.model import LoadedModel, load
from models.tiny.tokenizer import FOLDER

SEED = 20_042
TASKS = ("niah_multikey_1_prose", "niah_multikey_1_noise", "niah_multikey_2", "niah_multivalue_prose")
PATTERNS = ("look_back", "local", "sink", "induction", "duplicate", "retrieval")
FIGURE = FOLDER.parents[1] / "docs" / "figures" / "heads.png"


@torch.no_grad()
def attention(loaded: LoadedModel, ids: list[int]) -> Tensor:
    """[layers, H, T, T] float32. The model must have been set to eager attention, which returns its probabilities."""
    out = loaded.model(torch.tensor([ids], device=loaded.device), use_cache=False, output_attentions=True)
    return torch.stack([layer[0].float().cpu() for layer in out.attentions])


def look_back(attention: Tensor, furthest: int = 8) -> Tensor:
    """[..., furthest]: mean share at distance 1 .. furthest."""
    offsets = range(1, furthest + 1)
    return torch.stack([attention.diagonal(-offset, -2, -1).mean(-1) for offset in offsets], -1)


def local(attention: Tensor, width: int = 16) -> Tensor:
    """[...]: mean share on the newest `width` tokens, of rows that see more."""
    rows = torch.arange(attention.shape[-2])
    near = (rows[:, None] - rows[None] < width) & (rows[:, None] >= rows[None])
    return (attention * near).sum(-1)[..., width:].mean(-1)


def sink(attention: Tensor, first: int = 4, behind: int = 64) -> Tensor:
    return attention[..., behind:, :first].sum(-1).mean(-1)


def share_on_repeat(attention: Tensor, shift: int) -> Tensor:
    """[...]: the second half's mean share on the same token's first occurrence (shift 0), or on the token after it (1).

    The text is BEGIN and then n tokens written twice.
    """
    half = (attention.shape[-1] - 1) // 2
    return attention.diagonal(shift - half, -2, -1)[..., 1 + shift :].mean(-1)


def find_value_tokens(context: list[int], answer: list[int], value: list[int]) -> list[tuple[int, int]]:
    """(index in the answer, position in the context) of each token of a value. Empty unless the value is once in
    both."""
    size = len(value)
    places = [[i for i in range(len(text) - size + 1) if text[i : i + size] == value] for text in (context, answer)]
    if [len(found) for found in places] != [1, 1]:
        return []
    return [(places[1][0] + k, places[0][0] + k) for k in range(size)]


def measure(loaded: LoadedModel, samples: int = 8, length: int = 512) -> dict[str, Any]:
    """Each pattern's shares [layers][query heads], rounded, the distance of look_back, and facts about the texts."""
    loaded.model.set_attn_implementation("eager")
    sums: dict[str, list[Tensor]] = {name: [] for name in (*PATTERNS, "by_distance")}
    generator = torch.Generator().manual_seed(SEED)
    vocabulary = len(loaded.tokenizer)
    for _ in range(samples):
        once = torch.randperm(vocabulary - 300, generator=generator)[:128] + 300
        ids = [loaded.tokenizer.bos_token_id, *once.tolist(), *once.tolist()]
        weights = attention(loaded, ids)
        sums["induction"].append(share_on_repeat(weights, 1) + share_on_repeat(weights, 2))
        sums["duplicate"].append(share_on_repeat(weights, 0))
    for task in Ruler(length=length, tasks=list(TASKS), samples=samples, seed=SEED).tasks(loaded.tokenizer):
        for sample in task.samples:
            context, question = loaded.prompt_ids(sample.context, sample.question, sample.answer_prefix)
            answer = greedy(loaded, [*context, *question])
            weights = attention(loaded, [*context, *question, *answer])
            of_context = weights[..., : len(context), : len(context)]
            sums["by_distance"].append(look_back(of_context))
            sums["local"].append(local(of_context))
            sums["sink"].append(sink(of_context))
            asked = len(context) + len(question)
            for reference in sample.references:
                value = loaded.tokenizer.encode(reference, add_special_tokens=False)
                for said, place in find_value_tokens(context, answer, value):
                    sums["retrieval"].append(weights[:, :, asked + said - 1, place : place + 2].sum(-1))
    means = {name: torch.stack(each).mean(0) for name, each in sums.items() if each}
    far = means.pop("by_distance")
    means["look_back"] = far.amax(-1)
    rounded = {name: [[round(x, 3) for x in layer] for layer in means[name].tolist()] for name in PATTERNS}
    facts = {"contexts": len(sums["local"]), "tokens_of_a_context": length, "value_tokens_said": len(sums["retrieval"])}
    return {"facts": facts, "distance": (far.argmax(-1) + 1).tolist(), **rounded}


@torch.no_grad()
def greedy(loaded: LoadedModel, ids: list[int], longest: int = 40) -> list[int]:
    prompt = torch.tensor([ids])
    out = loaded.model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=longest)
    return out[0, len(ids) :].tolist()


def draw(measured: dict[str, Any], path: Path) -> None:
    """A heat map for each pattern. look_back's squares name the distance too, where the share is above 0.3."""
    from evals.plots import draw_heads  # half a second

    panels = {name.replace("_", " "): measured[name] for name in PATTERNS}
    texts = {
        name: [[f"{share:.2f}"[1:] if share < 0.995 else "1" for share in layer] for layer in shares]
        for name, shares in panels.items()
    }
    for layer, shares in enumerate(measured["look_back"]):
        for head, share in enumerate(shares):
            if share > 0.3:
                texts["look back"][layer][head] += f"\n-{measured['distance'][layer][head]}"
    title = "What each head attends to (two query heads share a KV head)"
    draw_heads(panels, title, path, columns=3, heads="query head", scale="share of attention", texts=texts)


def main() -> None:
    measured = measure(load(FOLDER, dtype="float32"))
    write_atomically(FOLDER / "heads.json", json.dumps(measured).encode())
    draw(measured, FIGURE)
    print(json.dumps(measured["facts"]))


if __name__ == "__main__":
    main()
