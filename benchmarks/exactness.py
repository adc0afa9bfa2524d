"""How far the backend is from dense attention, in every model family and mode; and what it stores.

Logits of tiny models of random weights in float64; the reference is one dense forward a row, without cache or padding,
with -inf on the evicted keys of each KV head (tests/reference/dense_reference.py).
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks._section import ROOT, Section, run
from lukv.allocation import Budget
from lukv.backend import cache_file
from lukv.backend.cache import RaggedCache
from lukv.backend.generate import answer, append, compress, stream
from tests.reference.dense_reference import FAMILIES, eviction, reference_logits, rows, tiny_model

PROMPTS, AFTER = rows([70, 57]), rows([80, 80], seed=1)
QUESTION = rows([9, 4], seed=2)


def steps(model: PreTrainedModel, cache: RaggedCache, n: int) -> Tensor:
    """[steps, B, vocabulary]: the logits after every n tokens of AFTER."""
    return torch.stack([append(model, cache, [row[a : a + n] for row in AFTER]) for a in range(0, 80, n)])


def against_dense(model: PreTrainedModel, cache: RaggedCache, n: int) -> float:
    """Largest difference of any logit after n, 2n, ... 80 tokens."""
    got = steps(model, cache, n)
    worst = 0.0
    for row, prompt in enumerate(PROMPTS):
        wanted = reference_logits(model, cache, row, prompt, AFTER[row])[n - 1 :: n]
        worst = max(worst, float((got[:, row].double() - wanted).abs().max()))
    return worst


def batch_against_rows(model: PreTrainedModel) -> float:
    """A padded batch with questions of different length, against each row alone; then the roll-back of both."""
    batch, worst = compress(model, PROMPTS, eviction=eviction(0.3)), 0.0
    for _ in range(2):
        together = append(model, batch, QUESTION)
        batch.rollback()
        for row, prompt in enumerate(PROMPTS):
            alone = append(model, compress(model, [prompt], eviction=eviction(0.3)), [QUESTION[row]])
            worst = max(worst, float((together[row] - alone[0]).abs().max()))
    return worst


def differences(model: PreTrainedModel) -> dict[str, float]:
    """Mode -> largest difference of a logit."""
    whole = compress(model, PROMPTS, eviction=eviction(0.3))
    pieces = compress(model, PROMPTS, eviction=eviction(0.3), chunk=16)
    wanted = append(model, whole, QUESTION)
    whole.rollback()
    with tempfile.TemporaryDirectory() as folder:
        cache_file.save(whole, Path(folder) / "cache.safetensors")
        loaded = cache_file.load(Path(folder) / "cache.safetensors", model)
    streamed = stream(model, PROMPTS, replace(eviction(0.3), budget=Budget(tokens=20)), block=32)
    alone = [stream(model, [p], replace(eviction(0.3), budget=Budget(tokens=20)), block=32) for p in PROMPTS]
    apart = torch.cat([append(model, one, [q]) for one, q in zip(alone, QUESTION, strict=True)])
    return {
        "all kept, 1 a step": against_dense(model, compress(model, PROMPTS), 1),
        "30%, 1 a step": against_dense(model, compress(model, PROMPTS, eviction=eviction(0.3)), 1),
        "30%, 5 a step": against_dense(model, compress(model, PROMPTS, eviction=eviction(0.3)), 5),
        "1%, 5 a step": against_dense(model, compress(model, PROMPTS, eviction=eviction(0.01)), 5),
        "batch or row": batch_against_rows(model),
        "prompt in pieces": float((append(model, pieces, QUESTION) - wanted).abs().max()),
        "saved, loaded": float((append(model, loaded, QUESTION) - wanted).abs().max()),
        "streamed, batch or row": float((append(model, streamed, QUESTION) - apart).abs().max()),
    }


def generate_agrees(model: PreTrainedModel) -> str:
    """model.generate() on a padded batch, against our own loop on each row."""
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    cache = RaggedCache(model)
    said = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=20, do_sample=False)
    same = [
        answer(model, compress(model, [p[:-1]]), [p[-1:]], 20).tokens[0] == said[row, longest:].tolist()
        for row, p in enumerate(PROMPTS)
    ]
    return "yes" if all(same) else "NO"


def low_precision(family: str, dtype: torch.dtype) -> float:
    """Largest difference to float64 at the same kept entries, in units of the largest logit: the model's rounding."""
    exact, model = tiny_model(family), tiny_model(family, dtype)
    cache = compress(model, PROMPTS, eviction=eviction(0.3))
    got = steps(model, cache, 1)
    worst = 0.0
    for row, prompt in enumerate(PROMPTS):
        wanted = reference_logits(exact, cache, row, prompt, AFTER[row])
        worst = max(worst, float((got[:, row].double() - wanted).abs().max() / wanted.abs().max()))
    return worst


def measure(section: Section) -> None:
    torch.set_num_threads(1)
    section.text("""
        Largest difference of any logit, float64, batch of two prompts of 70 and 57 tokens with padding, 80 tokens after
        them unless it says otherwise. The first four columns are against dense attention with -inf on what was evicted;
        *1%* leaves most heads without any token of the prompt; *batch or row*, *in pieces*, *saved* and *streamed* are
        against the same without batch, pieces, file and batch. *generate*: `model.generate()` gives the tokens of our
        own loop.
    """)
    for i, family in enumerate(FAMILIES):
        model = tiny_model(family)
        found = differences(model)
        if i == 0:
            section.head("model", *found, "generate")
        section.row(family, *(f"{x:.1e}" if x else "0" for x in found.values()), generate_agrees(model))
    section.text("The same 30%, one token a step, in low precision, in units of the largest logit:")
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    section.head("model", *(str(dtype)[6:] for dtype in dtypes))
    for family in FAMILIES:
        section.row(family, *(f"{low_precision(family, dtype):.1e}" for dtype in dtypes))
    section.text("""
        Bytes of a cache of 4096 tokens (llama, 4 layers of 2 KV heads of 16, float32): *stored* are the kept entries,
        exactly; *allocated* adds the free rows behind each head that the next tokens are written to.
    """)
    section.head("budget", "full cache", "stored", "share", "allocated", "share")
    model = tiny_model("llama", torch.float32, max_position_embeddings=8192)
    prompt = rows([4096])
    for share in (0.05, 0.1, 0.2, 0.5, 1.0):
        cache = compress(model, prompt, eviction=eviction(share))
        full, stored, allocated = cache.full_nbytes, cache.nbytes, cache.allocated_nbytes
        section.row(f"{share:g}", full, stored, f"{stored / full:.4f}", allocated, f"{allocated / full:.4f}")


if __name__ == "__main__":
    run("Exactness and bytes", measure, page=ROOT / "docs" / "backend.md")
