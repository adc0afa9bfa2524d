"""The scores and prompts of four published sets against kvpress 0.5.5's own programs, which run in their own process.

They are in its source distribution, not in its wheel: scripts/peers_venv.sh lays them beside .venv-peers. Here the
golden values of tests/golden are computed again, and so are scores of random predictions made of what a scorer
looks for.
"""

import json
import os
import random
import re
import subprocess
from pathlib import Path

import pytest

from tests.evals.test_published import GOLDEN, NAMES, rate
from tests.peers.conftest import HERE, PYTHON

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1800)]

EVALUATION = Path(os.environ.get("LUKV_PEERS_EVALUATION", PYTHON.parents[1] / "kvpress-0.5.5" / "evaluation"))
PREDICTIONS = 400
"""Random predictions of each golden answer."""

PIECES = [
    *"ABCDEJK",
    *("answer is:", "answer:", "is:", "option is", "Option", "The correct answer is", "The correct option is:"),
    *(" ", "  ", "\n", ".", ",", ":", "(", ")", "*", "'", '"', "`", "-", "!", "{", "}", "[", "]", "，", "。"),
    *("0", "1", "4", "8", "42", "5.07", "-3", "007", "1_0", "the", "a", "an", "x", "yes", "Meg", "foo", "'<mask-0>'"),
]


@pytest.fixture(scope="module")
def theirs():
    """Cases -> the same with kvpress's values."""
    for path in (PYTHON, EVALUATION):
        if not path.exists():
            pytest.skip(f"{path} is not there: make it with `make test-peers`")

    def run(cases):
        lines = "".join(json.dumps(case) + "\n" for case in cases)
        done = subprocess.run(
            [PYTHON, "-W", "ignore", HERE / "run_scorers.py", EVALUATION],
            input=lines,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def read_golden(name):
    return [json.loads(line) for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["kvpress_scores.jsonl", "kvpress_prompts.jsonl"])
def test_golden_values_are_what_kvpress_computes(name, theirs):
    golden = read_golden(name)
    asked = [{key: value for key, value in case.items() if key not in ("scores", "prompts")} for case in golden]
    assert theirs(asked) == golden


def make_predictions(case, draw):
    """Texts of pieces that scorers look for, and of pieces of the right answer."""
    answer = case["answer"] if isinstance(case["answer"], list) else [case["answer"]]
    own = [piece for each in answer for piece in (str(each), *str(each).split(), str(each).upper())]
    for _ in range(PREDICTIONS):
        pieces = [draw.choice(own if draw.random() < 0.4 else PIECES) for _ in range(draw.randrange(9))]
        yield draw.choice(["", " "]).join(pieces)


def ends_in_error(case, prediction):
    """math_find, a whole number is sought, and the prediction's first has a point: kvpress calls int("5.07")."""
    first = re.search(r"\d+\.\d+|\d+", prediction)
    return case["answer"] == [42] and first is not None and "." in first[0]


def test_random_predictions_score_the_same(theirs):
    draw = random.Random(0)
    answers = {
        json.dumps([case["benchmark"], case["task"], case["answer"]]): case
        for case in read_golden("kvpress_scores.jsonl")
    }
    cases = [
        {"benchmark": case["benchmark"], "task": case["task"], "answer": case["answer"], "prediction": prediction}
        for case in answers.values()
        for prediction in make_predictions(case, draw)
        if not ends_in_error(case, prediction)
    ]
    scored = theirs(cases)
    assert len(scored) == len(cases) > 15 * PREDICTIONS
    right = 0
    for case in scored:
        ours = rate(case["benchmark"], case["task"], case["prediction"], case["answer"])
        expected = {NAMES.get(name, name): value for name, value in case["scores"].items()}
        assert ours == pytest.approx(expected, rel=1e-12, abs=1e-300), case
        right += any(expected.values())
    assert len(cases) / 10 < right < 0.9 * len(cases)  # neither all wrong nor all right
