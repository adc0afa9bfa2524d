"""One layer of a RaggedCache: it attends over the prompt, evicts, stores what stays, and then decodes against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any
from weakref import ref

import numpy as np
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from lukv.backend.decode import attend_arena
from lukv.backend.kernels import Kernel, pick
from lukv.backend.options import ATTENTION, Later, Options
from lukv.backend.padding import Range, group_rows
from lukv.backend.parameters import AttentionParameters
from lukv.backend.prompt import Entries, PromptBuffer, PromptScores, attend_rows, keep_window, split_rows
from lukv.backend.reeviction import Reeviction
from lukv.backend.stored import NO_STATE, Stored
from lukv.scoring import ExtraPass, PassLayer, PromptLayer, Rope, Scorer
from lukv.selection import Eviction, Ranked


@dataclass
class Update:
    """One update of a layer, on its way through the model: the keys and values that come to the attention function
    carry it.

    layer: a weak reference, as the layer may hold views of the very tensors that carry this, a circle that Python could
    not free. columns: what the layer had seen then. attended: did the layer attend over it? What comes after that is
    the call of another layer that reads this one's entries. of_prompt: were they the prompt's, or a chunk of it?
    chunks: all chunks so far, if there was one before.
    """

    layer: ref[RaggedLayer]
    columns: int
    attended: bool = False
    of_prompt: bool = False
    chunks: Entries | None = None


class RaggedLayer(CacheLayerMixin):
    """What transformers sees of a layer. `index` counts the layers that can be evicted. A layer with a sliding `window`
    keeps its window, whatever the method.

    Its parts come and go. `buffer` exists while the prompt comes in, `stored` from then on. `scores` exists once a
    token was run through the layer, and `reeviction` beside it where the cache is to be evicted again.
    """

    is_compileable = False
    is_croppable = False
    supports_early_init = False

    def __init__(
        self, options: Options, index: int, window: int | None, read_rope: Callable[[], Rope | None], guards: bool
    ) -> None:
        """read_rope: the rotary embedding as the model has it when this is called, see `make_rope`. guards: check that
        the attention function is ours. One layer of a model does, as reading a config is slow."""
        super().__init__()
        self.options, self.index, self.window, self.read_rope, self.guards = options, index, window, read_rope, guards
        self.is_sliding = window is not None
        self.reset()

    def reset(self) -> None:
        self.seen = 0  # columns of input, padding included: what transformers counts positions and masks by
        self.waiting = False  # between `update` and `attend`
        self.kernel: Kernel | None = None
        self.buffer: PromptBuffer | None = None
        self.stored: Stored | None = None
        self.scores: PromptScores | None = None
        self.reeviction: Reeviction | None = None
        self.queries: list[Tensor] = []  # [B, H, n, d] of the columns after the prompt, if they are recorded

    # ---- what transformers calls -------------------------------------------------------------------------------------

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Hand the new keys and values through to the attention function, marked as ours."""
        config = self.options.config
        if self.guards and config._attn_implementation != ATTENTION:
            raise RuntimeError(
                "a RaggedCache only works with its own attention function: call lukv.backend.attention."
                f"use_ragged_attention(model) first (now: {config._attn_implementation})"
            )
        self.require_attended()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.seen += key_states.shape[-2]
        self.waiting = True
        update = Update(ref(self), self.seen)
        for states in (key_states, value_states):
            states.ragged_update = update  # type: ignore[attr-defined]
        return key_states, value_states

    def require_attended(self) -> None:
        """Raise NotImplementedError if the last update never came to the attention function."""
        if self.waiting:
            raise NotImplementedError(
                f"this {self.options.config.model_type} did not hand the keys that it gave to a RaggedCache on to the "
                "attention function as they are, which this backend needs"
            )

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query: int | Tensor) -> tuple[int, int]:
        """query: how many columns are new; transformers 5.2 gives their positions instead."""
        return self.seen + (query if isinstance(query, int) else query.shape[0]), 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in transformers 5.2

    def crop(self, *args: Any) -> None:
        raise NotImplementedError("a RaggedCache cannot be cropped: assisted decoding is not supported (rollback() is)")

    def reorder_cache(self, *args: Any) -> None:
        raise NotImplementedError("a RaggedCache cannot be reordered: beam search is not supported")

    batch_repeat_interleave = batch_select_indices = reorder_cache

    # ---- attention ---------------------------------------------------------------------------------------------------

    def attend(
        self,
        update: Update,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        valid: Tensor | None,
        parameters: AttentionParameters,
    ) -> Tensor:
        """Attention of n new columns, which are the prompt or a chunk of it, or come after it.

        query [B, H, n, d], key [B, K, n, d], value [B, K, n, dv]; valid [B, 1, n, 1] bool: which columns are tokens
        (None: all). Returns [B, n, H, dv].
        """
        ranges = self.options.masks.read(valid)
        if update.attended:
            return self._attend_again(update, query, key, value, ranges, parameters)
        self.waiting, update.attended = False, True
        batch, n = len(query), query.shape[2]
        scores = self.scores or self._begin(key, value, parameters)
        start = self.tokens
        if batch != len(start):
            raise ValueError(
                f"this cache holds {len(start)} sequence{'s' * (len(start) > 1)}, the input has {batch}: beam search "
                "and num_return_sequences, which repeat each, are not supported"
            )
        after = start + (n if ranges is None else np.array([b - a for a, b in ranges]))
        self._check_lengths(start, after, parameters.window)
        if self.kernel is None:
            shape = query.shape[-1], value.shape[-1], parameters.softcap is not None
            self.kernel = pick(
                self.options.attention, query.device, query.dtype, *shape, cache_dtype=self.options.cache_dtype
            )
        if self.reeviction is not None:
            self.reeviction.observe(query, ranges, start, scores.rope)
        if self.buffer is None:
            return self._attend_stored(self.kernel, query, key, value, ranges, parameters)
        ranges = ranges or [(0, n)] * batch
        update.of_prompt, first = True, self.buffer.is_empty
        key, value = self.buffer.add(key, value, ranges)
        if not first:  # a first chunk is what the update carries anyway, and may not hold itself alive
            update.chunks = key, value
        prompt = split_rows(key, value, n, ranges, after)
        out = attend_rows(query, prompt, ranges, parameters, self.window)
        if not self.is_sliding:
            scores.observe(query, ranges, start, self.options.scorers)
        if self.seen >= (self.options.prompt_columns or self.seen):
            self._evict_prompt(prompt, after, scores)
        return out

    def _attend_again(
        self,
        update: Update,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        ranges: list[Range] | None,
        parameters: AttentionParameters,
    ) -> Tensor:
        """Attention of another layer, which stores nothing, over what this one holds: all of the prompt while it comes
        in, and later what was kept of it. Shapes as in `attend`, but queries and ranges may be of fewer columns, the
        last ones (gemma4 computes only what it is asked for)."""
        if update.columns != self.seen:
            raise RuntimeError("attention over keys of an earlier forward, which the cache has left behind")
        self._check_lengths(self.tokens, self.tokens, parameters.window)
        if update.of_prompt:
            ranges = ranges or [(0, query.shape[2])] * len(query)
            rows = split_rows(*(update.chunks or (key, value)), query.shape[2], ranges, self.tokens)
            return attend_rows(query, rows, ranges, parameters, self.window)
        assert self.kernel is not None
        return self._attend_newest(self.kernel, query, ranges, parameters)

    def _check_lengths(self, before: np.ndarray, after: np.ndarray, window: int | None) -> None:
        """Raise ValueError where rows of `after` [B] tokens would be answered wrongly. window: what the attention call
        says of its sliding window."""
        if self.guards and self.options.lengths is not None:
            self.options.lengths.check(before, after)
        if window is None or window == self.window or (self.window is None and after.max() <= window):
            return
        built = "full attention" if self.window is None else f"a window of {self.window}"
        raise ValueError(
            f"a layer of this {self.options.config.model_type} attends to the last {window} tokens, its config says "
            f"{built}: a row of {int(after.max())} tokens would be answered wrongly"
        )

    def _begin(self, key: Tensor, value: Tensor, parameters: AttentionParameters) -> PromptScores:
        """Make the parts for a batch like that of key [B, K, n, d] and value [B, K, n, dv]."""
        batch, heads = key.shape[:2]
        later = self.options.later
        if (later is not None or self.options.observe_heads) and not self.is_sliding:
            each = [None if later is None else later.of_row(row) for row in range(batch)]
            self.reeviction = Reeviction(each, heads, self.options.observe_heads)
        if later is not None and later.stream:
            self.stored = Stored.make_empty(key, value, self.cache_dtype)
            self.commit()
        elif self.stored is None:
            self.buffer = PromptBuffer(batch, self.window)
        about = self.index, self.options.layers, parameters, self.read_rope(), self.options.questions
        self.scores = PromptScores(batch, *about)
        return self.scores

    def _evict_prompt(self, prompt: Sequence[Entries], tokens: np.ndarray, scores: PromptScores) -> None:
        """Store what the eviction keeps of each row's prompt of `tokens` [B] tokens, which is here whole."""
        if (tokens == 0).any():
            raise ValueError(f"row {int(tokens.argmin())} of the batch has no token")
        eviction = None if self.is_sliding else self.options.eviction
        keep = keep_window(prompt, self.window) if eviction is None else scores.keep(eviction, prompt)
        self.buffer = None
        self._store(prompt, keep, tokens)
        if not self.options.observe:
            scores.forget()

    def _attend_stored(
        self,
        kernel: Kernel,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        ranges: list[Range] | None,
        parameters: AttentionParameters,
    ) -> Tensor:
        """Append the new tokens and attend from them; afterwards evict the rows that are due."""
        stored, scores = self.held, self._require_scores()
        if not self.is_sliding:
            if self.options.record_queries:
                self.queries.append(query.detach())
            if self.options.observe and stored.is_whole:
                scores.remember(query, ranges or [(0, query.shape[2])] * len(query), stored.tokens)
        if ranges is None:
            stored.append(key, value)
        for (a, b), rows in group_rows(ranges):
            stored.append(key[rows, :, a:b], value[rows, :, a:b], rows)
        out = self._attend_newest(kernel, query, ranges, parameters)
        if self.reeviction is not None:
            due = self.reeviction.find_due(stored.tokens)
            if due.any():
                self.evict_again(due)
        return out

    def _attend_newest(
        self, kernel: Kernel, query: Tensor, ranges: list[Range] | None, parameters: AttentionParameters
    ) -> Tensor:
        """Attention of the newest tokens of each row, which are stored already."""
        arena = self.held.arena
        if ranges is None:
            return attend_arena(kernel, query, arena, parameters, None, self.window).transpose(1, 2)
        out = query.new_zeros(*query.transpose(1, 2).shape[:3], arena.value_dim)
        for (a, b), rows in group_rows(ranges):
            part = attend_arena(kernel, query[rows, :, a:b], arena, parameters, rows, self.window)
            out[rows, a:b] = part.transpose(1, 2)
        return out

    @property
    def parameters(self) -> AttentionParameters:
        """Those of the model's attention. Raises RuntimeError before a token was run through the layer."""
        return self._require_scores().parameters

    # ---- eviction ----------------------------------------------------------------------------------------------------

    def view(self, row: int, keys: Tensor, values: Tensor, scorer: Scorer) -> PromptLayer:
        """What a scorer sees of one batch row's prompt: keys [K, T, d], values [K, T, dv]."""
        return self._require_scores().view(row, keys, values, scorer)

    def rank(self, eviction: Eviction) -> list[Ranked]:
        """How `eviction` ranks each row's prompt, which must be here whole."""
        return self._require_scores().rank(eviction, self.held.view_prompt())

    def keep_window(self) -> list[Tensor]:
        """Of each row's prompt [K, T] bool: what later tokens can attend to if nothing is evicted."""
        return keep_window(self.held.view_prompt(), self.window)

    def begin_passes(self, scorers: Sequence[Scorer]) -> None:
        """Let the extra passes of these scorers begin."""
        self._require_scores().begin_passes(scorers)

    def knows_passes(self, scorer: Scorer) -> bool:
        """Were the extra passes of this scorer run over the prompt?"""
        return all(scorer in passed for passed in self._require_scores().passed)

    def show_pass(
        self,
        row: int,
        scorer: Scorer,
        asked: ExtraPass,
        weigh: Callable[[Tensor], Tensor] | None,
        hidden: Tensor | None,
    ) -> None:
        """Show a scorer what was appended to a row since the last commit, which is the pass that it asked for."""
        scores, p = self._require_scores(), self.parameters
        keys, values = self.held.arena.view_row(row)
        tokens = int(self.held.committed.tokens[row])
        about = asked, self.index, self.options.layers, tokens, scores.view_appended(row), keys, values
        scores.show_pass(row, scorer, PassLayer(*about, p.scale, p.softcap, weigh, hidden))

    def evict_again(self, due: np.ndarray | None = None) -> None:
        """Evict the rows that are due (None: all that have seen a token since they were last evicted) by the cache's
        `later`. There is no way back: the state to roll back to is lost until `commit`."""
        stored = self.held
        assert self.reeviction is not None
        due = self.reeviction.find_changed(stored.tokens) if due is None else due
        self.stored = self.reeviction.evict(stored, self._require_scores(), due)

    def _require_scores(self) -> PromptScores:
        if self.scores is None:
            raise RuntimeError("no token was run through this cache yet: append one before it is scored")
        return self.scores

    # ---- state -------------------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> np.ndarray:
        """[B] int64: tokens each row has seen, without padding; [0] before the first input."""
        holder = self.stored or self.buffer
        return np.zeros(0, dtype=np.int64) if holder is None else holder.tokens

    @property
    def cache_dtype(self) -> str:
        """What its entries are stored in. A sliding window stays in the model's dtype: it is small."""
        return "auto" if self.is_sliding else self.options.cache_dtype

    @property
    def held(self) -> Stored:
        """What is stored. Raises RuntimeError before the whole prompt has come."""
        if self.stored is None:
            raise RuntimeError(NO_STATE)
        return self.stored

    def _store(self, prompt: Sequence[Entries], keep: Sequence[Tensor], tokens: np.ndarray) -> None:
        """Store what stays (keep [K, T] bool) of each row's prompt, and make this the state to roll back to."""
        self.stored = Stored.pack(prompt, keep, tokens, self.cache_dtype)
        if self.reeviction is not None:
            self.reeviction.start(tokens)
        self.commit()

    def restore(self, stored: Stored, seen: int) -> None:
        """Hold what another cache held after `seen` columns, and make this the state to roll back to."""
        self.stored, self.seen = stored, seen
        self.commit()

    def commit(self) -> None:
        """Make the present state the one to roll back to."""
        self.held.commit(self.seen)
        if self.scores is not None:
            self.scores.commit(self.options.scorers)
        if self.reeviction is not None:
            self.reeviction.commit()

    def rollback(self) -> None:
        """Back to the last commit. Raises RuntimeError if entries were evicted since."""
        self.held.rollback()
        self.seen, self.queries = self.held.committed.seen, []
        if self.scores is not None:
            self.scores.rollback()
        if self.reeviction is not None:
            self.reeviction.rollback()

    def fork(
        self, selections: Sequence[list[Tensor]], options: Options, later: Sequence[Later | None] | None = None
    ) -> RaggedLayer:
        """The layer as if all its rows had been prefilled once for each selection (see `select`) with these options.
        later: what evicts each selection's rows later on; None: what did so before."""
        snapshot, times = self.held.committed, len(selections)
        twin = self._copy_parts([*range(len(snapshot.tokens))] * times)
        twin.options, twin.seen = options, snapshot.seen
        for part in (twin.scores, twin.reeviction):
            if part is not None:
                part.rollback()  # what was appended is left out
        if twin.reeviction is not None and later is not None:
            twin.reeviction.assign([each for each in later for _ in snapshot.tokens])
        keep = [mask for selection in selections for mask in selection]
        twin._store(self.held.view_prompt() * times, keep, np.tile(snapshot.tokens, times))
        return twin

    def select_rows(self, rows: Sequence[int]) -> RaggedLayer:
        """A layer with copies of some batch rows as they are now."""
        twin = self._copy_parts(rows)
        twin.stored = self.held.select_rows(rows)
        twin.queries = [queries[list(rows)] for queries in self.queries]
        return twin

    def _copy_parts(self, rows: Sequence[int]) -> RaggedLayer:
        """A layer with what is known of these rows; what it stores is still to be set."""
        twin = copy(self)
        twin.scores = self.scores and self.scores.select_rows(rows)
        twin.reeviction = self.reeviction and self.reeviction.select_rows(rows)
        twin.queries = []
        return twin
