"""The calibrate job's core: many scorers in one pass, exact resume, and a state of other settings is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from baselines.oracle import Oracle as OracleScorer
from lukv.budgets.calibrate import CalibrationContext, CalibrationSettings, CalibrationState, ScorerMeans, fit, measure
from lukv.budgets.curve import MeanCurve
from lukv.budgets.mean import MeanSolution
from lukv.budgets.oracle import OracleSettings, UtilityOracle
from lukv.budgets.threshold import MeanThreshold
from lukv.probe import ProbeFit, UtilityProbe
from lukv.scoring import PromptLayer, Scorer
from lukv.selection import Protection
from tests.core.small_models import small_model, text

PROTECTION = Protection(2, 1)
SETTINGS = CalibrationSettings(OracleSettings(horizon=3))


@dataclass(frozen=True)
class KeyNorm(Scorer):
    sign: float = 1.0

    def score(self, layer: PromptLayer):
        return self.sign * layer.keys.float().norm(dim=-1)


UP, DOWN = KeyNorm("up"), KeyNorm("down", sign=-1.0, recent=3)
CONTEXTS = [
    CalibrationContext(
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
    return measure(model, [UP, DOWN], PROTECTION, CONTEXTS, SETTINGS, tmp_path_factory.mktemp("whole") / "state")


def same(ours, expected):
    for mean, other in zip(ours, expected, strict=True):
        for part, state in other.parts.items():
            for name, array in state.items():
                np.testing.assert_array_equal(mean.parts[part][name], array, err_msg=f"{part} {name}")


def test_it_is_the_mean_over_contexts_and_questions(model, whole):
    for scorer, measured in zip((UP, DOWN), whole, strict=True):
        protected = 2 + max(1, scorer.recent)
        curve = MeanCurve(model.layers, model.kv_heads, protected)
        mean = ScorerMeans(MeanSolution(model.layers, model.kv_heads), curve, MeanThreshold())
        for context in CONTEXTS:
            seen = UtilityOracle(model, SETTINGS.oracle).prefill(context.ids, [scorer])
            order = seen.order(scorer, PROTECTION).numpy()
            for question, _ in context.questions:
                utility = seen.utility(question).numpy()
                ranked = np.take_along_axis(utility, order, -1)
                mean.solution.add(ranked[..., protected:], len(context.ids))
                curve.add(ranked / seen.units.numpy(), 1 / len(context.questions))
                shielded = PROTECTION.over(scorer)
                mean.threshold.add(
                    seen.scores(scorer, PROTECTION), shielded.mask(seen.tokens), 1 / len(context.questions)
                )
        same([measured], [mean])
        assert measured.solution.state["samples"] == 6
        assert measured.curve.state["weight"] == 4


def test_a_scorer_that_knows_the_answer_is_measured_on_each_question_s_own_order(model, tmp_path):
    """Behind the protected tokens its ranking is perfect, and no other scorer's table loses less."""
    key_norm, oracle = measure(model, [UP, OracleScorer()], PROTECTION, CONTEXTS, SETTINGS, tmp_path / "state")
    mean = MeanSolution(model.layers, model.kv_heads)
    for context in CONTEXTS:
        seen = UtilityOracle(model, SETTINGS.oracle).prefill(context.ids)
        for question, _ in context.questions:
            free = seen.utility(question).numpy()[..., 2:-1]
            mean.add(-np.sort(-free, axis=-1), len(context.ids))
    for name, array in mean.state.items():
        np.testing.assert_allclose(oracle.solution.state[name], array, rtol=1e-6, atol=1e-12, err_msg=name)
    best, other = (m.solution.mean("loss") for m in (oracle, key_norm))
    assert (best[:80] < other[:80]).all()  # below 20% kept these short contexts hold little but protected tokens
    assert (best <= other * (1 + 1e-9)).all()


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_stopped_measurement_goes_on_to_the_same_bits(model, whole, tmp_path, stop):
    def interrupted():
        yield from CONTEXTS[:stop]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, [UP, DOWN], PROTECTION, interrupted(), SETTINGS, tmp_path / "state")
    seen = []
    original = UtilityOracle.prefill
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            UtilityOracle, "prefill", lambda self, ids, scorers: seen.append(ids) or original(self, ids, scorers)
        )
        same(measure(model, [UP, DOWN], PROTECTION, CONTEXTS, SETTINGS, tmp_path / "state"), whole)
    assert seen == [context.ids for context in CONTEXTS[stop:]]


def test_contexts_may_weigh_the_same_whatever_their_questions(model, tmp_path):
    settings = replace(SETTINGS, weigh="contexts")
    (mean,) = measure(model, [UP], PROTECTION, CONTEXTS, settings, tmp_path / "state")
    assert mean.solution.state["weight"] == 4
    assert mean.solution.state["tokens"] == sum(len(context.ids) for context in CONTEXTS)


@pytest.mark.parametrize(
    "changes", [{"settings": replace(SETTINGS, polish=True)}, {"scorers": [UP]}, {"protection": Protection(4, 1)}]
)
def test_a_state_of_other_settings_is_refused(model, tmp_path, changes):
    arguments = {"model": model, "scorers": [UP, DOWN], "protection": PROTECTION, "settings": SETTINGS}
    measure(**arguments, contexts=CONTEXTS[:1], state_path=tmp_path / "state")
    with pytest.raises(ValueError, match="begun with other settings"):
        measure(**(arguments | changes), contexts=CONTEXTS, state_path=tmp_path / "state")


def test_a_damaged_state_is_refused(tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match="is not a calibration state"):
        CalibrationState(tmp_path / "state.safetensors", "x")


def test_a_context_that_is_all_protected_is_an_error(model, tmp_path):
    with pytest.raises(ValueError, match="context 0 has 3 tokens, all of them protected under up"):
        measure(model, [UP], PROTECTION, [CalibrationContext((1, 2, 3), (((4,), ()),))], SETTINGS, tmp_path / "state")


def test_a_probe_is_fitted_to_the_mean_over_questions_and_resumes_to_the_same_bits(model, tmp_path):
    exact = ProbeFit()
    for context in CONTEXTS:
        seen = UtilityOracle(model, SETTINGS.oracle).prefill(context.ids)
        worth = sum(seen.utility(question) for question, _ in context.questions) / len(context.questions)
        exact.add(seen.layers(UtilityProbe()), worth / seen.units, PROTECTION)
    (whole,) = fit(model, [UtilityProbe()], PROTECTION, CONTEXTS, SETTINGS, tmp_path / "whole")
    fit(model, [UtilityProbe()], PROTECTION, CONTEXTS[:2], SETTINGS, tmp_path / "stopped")
    (resumed,) = fit(model, [UtilityProbe()], PROTECTION, CONTEXTS, SETTINGS, tmp_path / "stopped")
    for name, array in exact.state.items():
        np.testing.assert_allclose(whole.state[name], array, rtol=1e-12)
        np.testing.assert_array_equal(whole.state[name], resumed.state[name])
    with pytest.raises(ValueError, match="begun with other settings"):
        fit(model, [UtilityProbe(eps=0.1)], PROTECTION, CONTEXTS, SETTINGS, tmp_path / "whole")


@pytest.mark.parametrize("wrong", [{"aggregation": "mean"}, {"weigh": "all"}, {"scope": "head"}])
def test_impossible_settings_are_one_line(wrong):
    with pytest.raises(ValueError, match="choose one of"):
        CalibrationSettings(OracleSettings(), **wrong)
