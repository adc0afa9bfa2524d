"""Extra passes: further forwards over the whole cache of a prompt, for scorers that ask for them.

What such a scorer sees of a pass is folded into what it observed of the prompt. From then on it is a scorer like any
other. While a pass runs, memory holds the whole cache, the pass's own keys and values, and its queries in all layers;
with `Scorer.needs_hidden` also its hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import zip_longest

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lukv.backend.architecture import unwrap
from lukv.backend.cache import RaggedCache
from lukv.backend.forward import Loaded, run
from lukv.backend.output import list_full_layers, output_grams, read_projections
from lukv.backend.padding import stack_left
from lukv.ops import value_weight
from lukv.scoring import ExtraPass, Prompt, Scorer

Rows = tuple[tuple[int, ...], ...]
"""The ids of one forward, of each batch row; none where a row has nothing to run."""

Asked = tuple[ExtraPass | None, ...]
"""What a scorer asks of one forward, of each batch row."""


@torch.no_grad()
def run_passes(
    model: PreTrainedModel | Loaded,
    cache: RaggedCache,
    scorers: Sequence[Scorer],
    prompts: Sequence[Prompt],
) -> None:
    """Run the extra passes of these scorers, each forward once. Afterwards `select` and `fork_for` know the scorers.

    The cache must hold `prompts`, one a row, and keep everything (eviction=None, observe=scorers). It is left as it
    was. Raises ValueError for a cache that was evicted or extended, and for a model that does not show what a scorer
    looks at.
    """
    network = unwrap(model)
    asking = [scorer for scorer in dict.fromkeys(scorers) if scorer.makes_passes]
    check_shown(network, asking)
    cache.begin_passes(asking, [len(prompt.ids) for prompt in prompts])
    norms = find_norms(network) if any(scorer.needs_hidden for scorer in asking) else []
    grams = output_grams(network) if any(scorer.needs_output for scorer in asking) else []
    for rows, askers in share_forwards(prompts, asking).items():
        ids, mask = stack_left([torch.tensor(row, dtype=torch.int64, device=network.device) for row in rows])
        output = run(network, cache, ids, mask, output_hidden_states=any(s.needs_hidden for s, _ in askers))
        for number, layer in enumerate(cache.evictable):
            for scorer, asked in askers:
                weigh = partial(value_weight, gram=grams[number], normalise=False) if scorer.needs_output else None
                for row, each in enumerate(asked):
                    if each is None:
                        continue
                    hidden = None
                    if scorer.needs_hidden:
                        entering = output.hidden_states[cache.model_layers[number]]
                        hidden = norms[number](entering[row, -len(each.ids) :])
                    layer.show_pass(row, scorer, each, weigh, hidden)
        del output
        cache.rollback()


def share_forwards(prompts: Sequence[Prompt], scorers: Sequence[Scorer]) -> dict[Rows, list[tuple[Scorer, Asked]]]:
    """The forwards to run, each with those who asked for it.

    A scorer's first passes of all rows are one forward, then its second passes, and so on, whoever else asks for
    something. So its scores do not depend on other scorers, to the last bit.
    """
    forwards: dict[Rows, list[tuple[Scorer, Asked]]] = {}
    for scorer in scorers:
        for asked in zip_longest(*(scorer.extra_passes(prompt) for prompt in prompts)):
            rows = tuple(() if each is None else each.ids for each in asked)
            if not all(each is None or each.ids for each in asked):
                raise ValueError(f"scorer {scorer.name}: an extra pass needs at least one token")
            forwards.setdefault(rows, []).append((scorer, asked))
    return forwards


def check_shown(model: PreTrainedModel, scorers: Iterable[Scorer]) -> None:
    """Raise ValueError if a scorer looks at what this model does not show."""
    for scorer in scorers:
        try:
            if scorer.needs_output:
                read_projections(model)
            if scorer.needs_hidden:
                find_norms(model)
        except ValueError as error:
            raise ValueError(f"scorer {scorer.name} cannot be used: {error}") from error


def find_norms(model: PreTrainedModel) -> list[Callable[[Tensor], Tensor]]:
    """What each layer that can be evicted applies to its input before attention. Raises ValueError where a layer has no
    `input_layernorm`."""
    norms = []
    for index, layer in list_full_layers(model):
        norm = getattr(layer, "input_layernorm", None)
        if norm is None:
            raise ValueError(f"layer {index} of this {model.config.model_type} has no input_layernorm")
        norms.append(norm)
    return norms
