"""Does a model answer the same with our cache and attention as with transformers' own?

Whatever a model does that this backend does not know of would be silently wrong: keys changed on their way to the
attention function, attention called twice, a mask of its own. A few tokens show it.
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor
from torch.linalg import vector_norm
from transformers import PreTrainedModel

from lukv.backend.attention import use_ragged_attention
from lukv.backend.cache import RaggedCache
from lukv.backend.options import CACHE

PROMPT, MORE = 11, 5
"""Tokens of the two forwards: a prompt that is kept whole, and some more tokens over what was stored."""

checked: set[str] = set()
"""Models that passed in this process, by what their config says, their dtype and the classes of their modules (linear
layers may be quantized)."""


def check_model(model: PreTrainedModel) -> None:
    """Raise ValueError if the model, which uses our attention, computes something else than with its own.

    The output of each layer may differ by `find_tolerance` of its norm, in the median of a forward's tokens: where two
    experts are nearly equal another may be chosen, which moves single tokens by more. Runs once for each config and
    dtype.
    """
    config = {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"}
    kinds = sorted({f"{type(module).__module__}.{type(module).__qualname__}" for module in model.modules()})
    text = json.dumps([str(model.dtype), kinds, config], sort_keys=True, default=str)
    key = hashlib.sha256(text.encode()).hexdigest()
    if key in checked:
        return
    try:
        differences = measure_differences(model)
    except NotImplementedError as error:
        raise ValueError(f"this {model.config.model_type} cannot be run: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError) as error:  # it takes what only another cache has
        said = " ".join(str(error).split())
        raise ValueError(f"this {model.config.model_type} fails with the backend's cache: {said}") from error
    tolerance = find_tolerance(model.dtype)
    wrong = [layer for layer, difference in enumerate(differences) if not difference <= tolerance]
    if wrong:
        if measure_split(model) > tolerance:
            raise ValueError(
                f"this {model.config.model_type} says something else where the same tokens come in two forwards, also "
                "by itself, as a model does whose activations are quantized on the fly: so would a compressed context. "
                "Weights may be quantized, activations not"
            )
        if max(measure_differences(model, tell_positions=False)) <= tolerance:
            raise ValueError(
                f"this {model.config.model_type} counts positions otherwise: the first token of a row does not stand "
                "at position 0, where this backend puts it"
            )
        count = len(differences) - 1
        where = f"from layer {wrong[0]} of {count} on" if wrong[0] < count else "in its logits"
        raise ValueError(
            f"this {model.config.model_type} answers otherwise with the eviction backend than with transformers' own "
            f"attention, {where}: its outputs differ by {differences[wrong[0]]:.1g} of their norm, where {model.dtype} "
            f"explains {tolerance:.1g} (model.check=false goes on all the same)"
        )
    checked.add(key)


def find_tolerance(dtype: torch.dtype) -> float:
    """The square root of the dtype's precision: half of its digits agree. float32 0.00035, float16 0.03, bfloat16 0.09,
    float64 as float32, in which "eager" computes its softmax. Rounding in two orders of the same sums stays below, a
    layer that attends to the wrong tokens does not."""
    return float(max(torch.finfo(kind).eps for kind in (dtype, torch.float32)) ** 0.5)


@torch.no_grad()
def measure_differences(model: PreTrainedModel, tell_positions: bool = True) -> list[float]:
    """How much the output of each layer, and at last the logits, differ from those of transformers' own attention: the
    norm of the difference as a share of the norm, the median of a forward's tokens, the larger of both forwards.

    tell_positions: tell the model the positions of the prompt, from 0 on, as `generate.feed` does. Those of the second
    forward it always counts by our cache, as under `model.generate`.
    """
    ids = make_ids(model)
    try:
        model.set_attn_implementation("eager")
        stock = run(model, ids)
    finally:
        use_ragged_attention(model)
    cache = RaggedCache(model)
    positions = torch.arange(PROMPT, device=model.device)[None] if tell_positions else None
    ours = [run(model, ids[:, :PROMPT], cache, positions), run(model, ids[:, PROMPT:], cache)]
    differences = []
    for wanted, *parts in zip(stock, *ours, strict=True):
        got = torch.cat(parts, dim=-2)
        axes = [axis for axis in range(got.ndim) if axis != got.ndim - 2]
        wanted, got = wanted.double(), got.to(wanted.device).double()
        each = vector_norm(got - wanted, dim=axes) / vector_norm(wanted, dim=axes)
        differences.append(max(float(part.median()) for part in each.split([PROMPT, MORE])))
    return differences


def make_ids(model: PreTrainedModel) -> Tensor:
    """[1, PROMPT + MORE]: some tokens."""
    words = min(256, model.config.get_text_config(decoder=True).vocab_size)
    return torch.arange(5, 5 + 37 * (PROMPT + MORE), 37, device=model.device)[None] % words


@torch.no_grad()
def measure_split(model: PreTrainedModel) -> float:
    """How much the model's own logits differ between one forward and two, as a share of their norm, in the median of
    the second forward's tokens. Its attention and cache are transformers' own."""
    ids = make_ids(model)
    try:
        model.set_attn_implementation("eager")
        whole = model(input_ids=ids, use_cache=True).logits[:, PROMPT:].double()
        first = model(input_ids=ids[:, :PROMPT], use_cache=True)
        rest = model(input_ids=ids[:, PROMPT:], use_cache=True, **{CACHE: first[CACHE]}).logits.double()
    finally:
        use_ragged_attention(model)
    return float((vector_norm(rest - whole, dim=-1) / vector_norm(whole, dim=-1)).median())


def run(
    model: PreTrainedModel, ids: Tensor, cache: RaggedCache | None = None, positions: Tensor | None = None
) -> list[Tensor]:
    """The output of every layer [.., n, d] and the logits [1, n, vocabulary] of ids [1, n] at positions [1, n] (None:
    the model counts them). cache: None for the model's own. Without any, gemma3n's layers do not share keys in
    transformers 5.2."""
    options = {CACHE: cache, "use_cache": True, "output_hidden_states": True}
    out = model(input_ids=ids, position_ids=positions, **options)
    if cache is not None:
        cache.require_attended()
    return [*(out.hidden_states or ())[1:], out.logits]
