"""The calibrate job's core: many scorers in one pass, exact resume, refusal of a state that belongs elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from small_models import small_model, text

from evals.harness.measure import Context, Settings, State, fit, measure
from lukv.aggregate import MeanSolution
from lukv.backend.selection import Protection
from lukv.oracle import Oracle, OracleSettings
from lukv.scoring import PromptLayer, Scorer

PROTECTION = Protection(2, 1)
SETTINGS = Settings(OracleSettings(horizon=3))


@dataclass(frozen=True)
class KeyNorm(Scorer):
    sign: float = 1.0

    def score(self, layer: PromptLayer):
        return self.sign * layer.keys.float().norm(dim=-1)


UP, DOWN = KeyNorm("up"), KeyNorm("down", sign=-1.0, recent=3)
CONTEXTS = [
    Context(
        tuple(text(i, 30 + 7 * i)),
        tuple((tuple(text(50 + i + q, 4)), tuple(text(90 + q, 2))) for q in range(1 + i % 2)),
    )
    for i in range(4)
]


@pytest.fixture(scope="module")
def model():
    return small_model("qwen2")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    return measure(model, [UP, DOWN], PROTECTION, CONTEXTS, SETTINGS, tmp_path_factory.mktemp("whole"))


def same(ours, expected):
    for mean, other in zip(ours, expected, strict=True):
        for name, array in other.state.items():
            np.testing.assert_array_equal(mean.state[name], array, err_msg=name)


def test_it_is_the_mean_over_contexts_and_questions(model, whole):
    for scorer, measured in zip((UP, DOWN), whole, strict=True):
        mean, protected = MeanSolution(model.layers, model.kv_heads), 2 + max(1, scorer.recent)
        for context in CONTEXTS:
            seen = Oracle(model, SETTINGS.oracle).context(context.ids, [scorer])
            order = seen.order(scorer, PROTECTION).numpy()[..., protected:]
            for question, _ in context.questions:
                utility = seen.utility(question).numpy()
                mean.add(np.take_along_axis(utility, order, -1), len(context.ids))
        same([measured], [mean])
        assert measured.state["samples"] == 6


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_stopped_measurement_goes_on_to_the_same_bits(model, whole, tmp_path, stop):
    def interrupted():
        yield from CONTEXTS[:stop]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, [UP, DOWN], PROTECTION, interrupted(), SETTINGS, tmp_path)
    seen = []
    original = Oracle.context
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Oracle, "context", lambda self, ids, scorers: seen.append(ids) or original(self, ids, scorers))
        same(measure(model, [UP, DOWN], PROTECTION, CONTEXTS, SETTINGS, tmp_path), whole)
    assert seen == [context.ids for context in CONTEXTS[stop:]]


def test_contexts_may_weigh_the_same_whatever_their_questions(model, tmp_path):
    settings = replace(SETTINGS, weigh="contexts")
    (mean,) = measure(model, [UP], PROTECTION, CONTEXTS, settings, tmp_path)
    assert mean.state["weight"] == 4
    assert mean.state["tokens"] == sum(len(context.ids) for context in CONTEXTS)


@pytest.mark.parametrize(
    "changes", [{"settings": replace(SETTINGS, polish=True)}, {"scorers": [UP]}, {"protection": Protection(4, 1)}]
)
def test_a_state_of_other_settings_is_refused(model, tmp_path, changes):
    arguments = {"model": model, "scorers": [UP, DOWN], "protection": PROTECTION, "settings": SETTINGS}
    measure(**arguments, contexts=CONTEXTS[:1], folder=tmp_path)
    with pytest.raises(ValueError, match="begun with other settings"):
        measure(**(arguments | changes), contexts=CONTEXTS, folder=tmp_path)


def test_a_damaged_state_is_refused(tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match="is damaged"):
        State(tmp_path / "state.safetensors", "x")


def test_a_context_that_is_all_protected_is_an_error(model, tmp_path):
    with pytest.raises(ValueError, match="context 0 has 3 tokens, all of them protected under up"):
        measure(model, [UP], PROTECTION, [Context((1, 2, 3), (((4,), ()),))], SETTINGS, tmp_path)


@pytest.mark.parametrize("wrong", [{"aggregation": "mean"}, {"weigh": "all"}, {"scope": "head"}])
def test_impossible_settings_are_one_line(wrong):
    with pytest.raises(ValueError, match="choose one of"):
        Settings(OracleSettings(), **wrong)
