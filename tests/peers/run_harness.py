"""lm-evaluation-harness by its Python call, run by its own Python: `run_harness.py TASKS OUT`.

TASKS is a folder with the yaml of two tasks, needle (generate_until) and choice (multiple_choice). OUT becomes JSON:
of each model in ASKED its answers to needle and, of ours, what results.json says of it; what choice is refused with.
"""

import json
import sys
from pathlib import Path

import lm_eval
import torch
from lm_eval.tasks import TaskManager

import evals.harness  # noqa: F401 - it registers the model

TINY = Path(__file__).parents[2] / "models" / "tiny"
ASKED = {
    "stock": ("hf", f"pretrained={TINY},dtype=float32,add_bos_token=True"),
    "full": ("lukv", "pretrained=tiny,method=full"),
    "by_path": ("lukv", f"pretrained={TINY},method=full,model.dtype=float32"),
    "snapkv": ("lukv", "pretrained=tiny,method=snapkv,budget=0.3"),
    "lukv": ("lukv", "pretrained=tiny,method=lukv,scorer=snapkv,budget_tokens=60"),
}


def main(tasks: Path, out: Path) -> None:
    torch.set_num_threads(1)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)

    def evaluate(model: str, arguments: str, task: str) -> dict:
        result = lm_eval.simple_evaluate(
            model=model, model_args=arguments, tasks=[task], task_manager=manager, batch_size=4, device="cpu"
        )
        assert result is not None
        return result

    results: dict = {}
    for name, (model, arguments) in ASKED.items():
        found = evaluate(model, arguments, "needle")
        samples = sorted(found["samples"]["needle"], key=lambda sample: sample["doc_id"])
        results[name] = {
            "answers": [sample["resps"][0][0] for sample in samples],
            "says": found["config"].get("lukv"),
            "score": found["results"]["needle"]["exact_match,none"],
        }
    try:
        evaluate("lukv", "pretrained=tiny,method=full", "choice")
    except ValueError as error:
        results["refused"] = str(error)
    out.write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
