"""The oracle against its definition written out in full: dense float64 attention over the whole text, |W_O v|
explicitly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, GenerationConfig
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.masking_utils import eager_mask

from lukv.backend import generate
from lukv.backend.attention import use_ragged_attention
from lukv.backend.output import output_grams, read_weight
from lukv.budgets.oracle import OracleSettings, UtilityOracle, sampler
from lukv.budgets.sampling import Sampling
from lukv.ops import output_gram, utility, value_weight
from lukv.scoring import PromptLayer, Scorer
from lukv.selection import Protection
from tests.core.small_models import VOCABULARY, small_model, text

FAMILIES = ("llama", "qwen2", "qwen3", "gemma2")
CAPTURED: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # layer -> attention [H, T, T], values [K, T, dv]


def dense(module, query, key, value, mask, dropout=0.0, scaling=None, softcap=None, **_):
    """Attention from its definition, in the input's own precision; keeps what it saw."""
    group = query.shape[1] // key.shape[1]
    logits = query @ key.repeat_interleave(group, 1).transpose(2, 3) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).triu(1), -torch.inf)
    attention = logits.softmax(-1)
    CAPTURED[module.layer_idx] = attention[0], value[0]
    return (attention @ value.repeat_interleave(group, 1)).transpose(1, 2), None


AttentionInterface.register("dense_for_oracle", dense)
AttentionMaskInterface.register("dense_for_oracle", eager_mask)


def whole_text(loaded, ids):
    """Logits [T, vocabulary] of one plain forward; fills CAPTURED."""
    loaded.model.set_attn_implementation("dense_for_oracle")
    with torch.no_grad():
        logits = loaded.model(torch.tensor([ids]), use_cache=False).logits[0]
    use_ragged_attention(loaded.model)
    return logits


def by_definition(loaded, context, question, answer, normalise=True, question_rows=False, first_row=True):
    """[layers, K, T]: every loop of the formula as a loop."""
    whole_text(loaded, [*context, *question, *answer])
    tokens, first = len(context), len(context) + len(question) - 1
    rows = range(tokens if question_rows else first + (not first_row), first + len(answer))
    result = []
    for index, layer in enumerate(loaded.model.get_decoder().layers):
        attention, values = CAPTURED[index]
        heads, kv_heads = len(attention), len(values)
        blocks = layer.self_attn.o_proj.weight.detach().unflatten(1, (heads, -1))
        n = torch.stack(
            [(values[h // (heads // kv_heads), :tokens] @ blocks[:, h].T).norm(dim=-1) for h in range(heads)]
        )
        n = n / n.sum() if normalise else n
        best = torch.zeros(kv_heads, tokens, dtype=torch.float64)
        for t in rows:
            for h in range(heads):
                k = h // (heads // kv_heads)
                best[k] = torch.maximum(best[k], attention[h, t, :tokens] * n[h])
        result.append(best)
    return torch.stack(result)


def greedy(loaded, ids, steps):
    out = []
    for _ in range(steps):
        out.append(int(whole_text(loaded, [*ids, *out])[-1].argmax()))
    return out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"normalise": False}, {"question_rows": True}, {"first_row": False}], ids=str)
def test_equals_the_definition(family, options):
    loaded, context = small_model(family), text(1, 70)
    measured = UtilityOracle(loaded, OracleSettings(horizon=7, **options)).prefill(context)
    for question in (text(2, 9), text(3, 1)):  # several questions on one context: rolled back in between
        ours = measured.utility(question)
        answer = greedy(loaded, context + question, 7)
        torch.testing.assert_close(
            ours, by_definition(loaded, context, question, answer, **options), rtol=1e-9, atol=1e-12
        )


def test_sliding_layers_have_no_utility():
    loaded = small_model(
        "gemma2", layer_types=["sliding_attention", "full_attention", "full_attention"], sliding_window=4096
    )
    context, question, answer = text(1, 50), text(2, 5), text(4, 3)
    ours = UtilityOracle(loaded, OracleSettings(continuation="reference")).prefill(context).utility(question, answer)
    torch.testing.assert_close(ours, by_definition(loaded, context, question, answer)[1:], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kv_heads", [1, 6])
def test_equals_the_definition_with_one_or_all_kv_heads(kv_heads):
    loaded, context, question, answer = small_model("llama", kv_heads=kv_heads), text(1, 50), text(2, 5), text(4, 6)
    settings = OracleSettings(continuation="reference", horizon=4)
    ours = UtilityOracle(loaded, settings).prefill(context).utility(question, answer)
    torch.testing.assert_close(ours, by_definition(loaded, context, question, answer[:4]), rtol=1e-9, atol=1e-12)


def test_sampled_answers_are_seeded_and_measured_as_drawn():
    loaded, context, question = small_model("qwen2"), text(1, 60), text(2, 6)
    settings = OracleSettings(continuation="sampled", horizon=5, seed=3)
    ours = UtilityOracle(loaded, settings).prefill(context).utility(question, index=4)
    pick, answer = sampler(settings, 4), []
    for _ in range(5):
        answer.append(int(pick(whole_text(loaded, [*context, *question, *answer])[-1:])))
    torch.testing.assert_close(ours, by_definition(loaded, context, question, answer), rtol=1e-9, atol=1e-12)
    again = UtilityOracle(loaded, settings).prefill(context)
    other = again.utility(question, index=5)
    torch.testing.assert_close(again.utility(question, index=4), ours, rtol=0, atol=0)
    assert not torch.equal(other, ours)


def test_an_answer_of_one_token_has_no_row_without_the_first():
    loaded, context, question = small_model("llama"), text(1, 40), text(2, 5)
    loaded.model.generation_config.eos_token_id = greedy(loaded, context + question, 1)[0]
    measured = UtilityOracle(loaded, OracleSettings(horizon=6, first_row=False)).prefill(context)
    assert measured.utility(question).count_nonzero() == 0
    assert measured.utility(question).shape == (3, 2, 40)


@pytest.mark.parametrize("stated", [{}, {"top_k": 5, "top_p": 0.6, "repetition_penalty": 1.7}, {"top_p": 0.3}], ids=str)
def test_own_sampling_is_what_generate_draws_from(stated):
    """Against transformers' own processors, in generate()'s order and with its defaults."""
    settings = OracleSettings(continuation="sampled", own_sampling=True)
    own = Sampling.of(GenerationConfig(**stated))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits, prompt = 3 * torch.randn(1, VOCABULARY, generator=generator), text(5, 9)
        ids, expected = torch.tensor([prompt]), logits.clone()
        expected = RepetitionPenaltyLogitsProcessor(stated.get("repetition_penalty", 1.0))(ids, expected)
        expected = expected / settings.temperature
        expected = TopKLogitsWarper(stated.get("top_k", 50))(ids, expected)
        expected = TopPLogitsWarper(stated.get("top_p", 1.0))(ids, expected).softmax(-1)[0]
        torch.testing.assert_close(own.probabilities(logits[0], prompt, settings.temperature), expected)
        assert (expected > 0).sum() < VOCABULARY


def test_own_sampling_looks_at_prompt_and_answer():
    loaded, context, question = small_model("qwen2"), text(1, 60), text(2, 6)
    loaded.model.generation_config.update(top_k=4, repetition_penalty=3.0)
    settings = OracleSettings(continuation="sampled", own_sampling=True, first_row=False, horizon=5, seed=3)
    ours = UtilityOracle(loaded, settings).prefill(context).utility(question, index=4)
    own, drawing, answer = Sampling(4, 1.0, 3.0), torch.Generator().manual_seed(3 * 1_000_003 + 4), []
    for _ in range(5):
        ids = [*context, *question, *answer]
        weights = own.probabilities(whole_text(loaded, ids)[-1], ids, settings.temperature)
        answer.append(int(torch.multinomial(weights, 1, generator=drawing)))
    expected = by_definition(loaded, context, question, answer, first_row=False)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sync_every", [1, 4])
def test_an_answer_that_ends_early_counts_the_step_that_ended_it(sync_every, monkeypatch):
    """No later step counts, even on a device that is synchronised only once in several steps (a GPU)."""
    monkeypatch.setitem(generate.SYNC_EVERY, "cpu", sync_every)
    loaded, context, question = small_model("llama"), text(1, 40), text(2, 5)
    answer = greedy(loaded, context + question, 6)
    end = next(i for i in range(1, 6) if answer[i] not in answer[:i])
    loaded.model.generation_config.eos_token_id = answer[end]
    ours = UtilityOracle(loaded, OracleSettings(horizon=6)).prefill(context).utility(question)
    expected = by_definition(loaded, context, question, answer[: end + 1])
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


class Recorder(Scorer):
    """Scores by the sum of the prompt's queries, so that a wrong or a second observation changes them."""

    def observe(self, observed, queries, start, rope):
        total = queries.sum(1)
        return total if observed is None else observed + total

    def score(self, layer: PromptLayer):
        return (layer.keys @ layer.observed.unflatten(0, (len(layer.keys), -1)).sum(1)[..., None])[..., 0].float()


def test_the_order_is_that_of_the_run_time_scorer_and_protection():
    loaded, context = small_model("llama"), text(1, 40)
    scorer, protection = Recorder(name="recorder", sink=2, recent=1), Protection(0, 3)
    measured = UtilityOracle(loaded).prefill(context, [scorer])
    measured.utility(text(2, 4))
    order = measured.order(scorer, protection).numpy()
    assert order.shape == (3, 2, 40)
    np.testing.assert_array_equal(np.sort(order), np.broadcast_to(np.arange(40), (3, 2, 40)))
    assert (order[..., :5] == [0, 1, 39, 38, 37]).all()
    for index, layer in enumerate(measured.cache.evictable):
        keys, values = (entries[:, :40] for entries in measured.cache.view_entries(index, 0))
        scores = scorer.score(layer.view(0, keys, values, scorer)).numpy()
        for head in range(2):
            rest = order[index, head, 5:]
            assert (np.diff(scores[head, rest]) <= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_near_float64(dtype):
    torch.manual_seed(0)
    queries, keys, values = torch.randn(8, 16, 32), torch.randn(2, 3050, 32), torch.randn(2, 3000, 32)
    projection = torch.randn(64, 8 * 32)
    queries, keys, values, projection = (x.to(dtype) for x in (queries, keys, values, projection))
    weight = value_weight(values, output_gram(projection, 8))
    ours = utility(queries, keys, weight, 0.2)
    exact = [x.double() for x in (queries, keys, values, projection)]
    reference = utility(exact[0], exact[1], value_weight(exact[2], output_gram(exact[3], 8)), 0.2)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), reference, rtol=1e-3, atol=1e-9)


def test_normalised_weights_sum_to_one_over_the_layer():
    torch.manual_seed(0)
    weight = value_weight(torch.randn(2, 700, 8), output_gram(torch.randn(24, 32), 4), block=100)
    assert weight.shape == (4, 700)
    torch.testing.assert_close(weight.sum(), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon=0"),
        ({"continuation": "beam"}, "greedy, sampled, reference"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"horizon": 1, "first_row": False}, "looks at no row"),
        ({"question_rows": True, "first_row": False}, "goes with first_row=true"),
        ({"own_sampling": True}, "needs continuation=sampled"),
    ],
)
def test_impossible_settings_are_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        OracleSettings(**options)


def test_reference_answers_must_be_there():
    measured = UtilityOracle(small_model("llama"), OracleSettings(continuation="reference")).prefill(text(1, 20))
    with pytest.raises(ValueError, match="needs a reference answer"):
        measured.utility(text(2, 3))
    with pytest.raises(ValueError, match="rows cannot come after"):
        utility(torch.zeros(2, 5, 4), torch.zeros(1, 10, 4), torch.zeros(2, 8), 1.0)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_the_weights_of_quantized_layers():
    """torch's dynamically quantized layers hold theirs packed; other integers mean nothing without their scales."""
    loaded = small_model("llama")
    loaded.model.float()
    exact = output_grams(loaded.model)
    loaded.model = torch.ao.quantization.quantize_dynamic(loaded.model, {torch.nn.Linear}, dtype=torch.qint8)
    for ours, gram in zip(output_grams(loaded.model), exact, strict=True):
        torch.testing.assert_close(ours, gram, rtol=0, atol=0.02 * float(gram.abs().max()))
    worth = UtilityOracle(loaded, OracleSettings(horizon=2)).prefill(text(0, 30)).utility([5, 6])
    assert worth.isfinite().all()
    projection = torch.nn.Linear(4, 4)
    projection.weight = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="m: layer 0 has quantized output weights, which cannot be read"):
        read_weight(projection, "m: layer 0")
