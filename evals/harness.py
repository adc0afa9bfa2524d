"""lm-evaluation-harness on compressed prompts: a model named `lukv` in its registry.

    python -m evals.harness --model lukv --model_args pretrained=PATH,method=lukv,budget=0.2 --tasks TASKS

takes every argument of the command `lm_eval`, which does not look for models outside its own package. From Python,
`import evals.harness` is enough: lm_eval.simple_evaluate(model="lukv", model_args=...).

What is in model_args beside `pretrained` are settings of run.py (scorer=snapkv, budget_tokens=128 ...), checked as
there. Needs lm_eval (0.4.13).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from hydra import initialize_config_dir

from evals.run.build import (
    build_eviction,
    build_later,
    build_method,
    check_model,
    check_turns,
    get_model,
    input_errors,
)
from evals.run.compose import compose_run, join_lines
from evals.run.instantiate import InputError
from evals.run.overrides import normalize_arguments, parse_overrides
from evals.run.settings import Run
from lukv.backend.generate import answer, compress
from lukv.conf import CONF, GROUPS
from lukv.names import BUDGETS

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as error:
    raise ImportError(f"evals.harness needs lm-evaluation-harness ({error}): pip install lm_eval==0.4.13") from error

NO_LIKELIHOOD = (
    "lukv answers generate_until requests only: a log-likelihood request scores a text that is given, all of it, and "
    "no token of it would be decoded from a compressed prompt"
)
NEW_TOKENS = 256
"""Of an answer, where a task does not say: the harness's own number."""


@register_model("lukv")
class CompressedLM(LM):
    """Every prompt is compressed as a whole, but for its last token, which the model is asked with.

    So the method knows the question, where the task's prompt has one. Prompts that are too long lose their beginning,
    as with the harness's own models. Answers are greedy.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        """pretrained: a model of conf/model, a folder, GGUF file or hub id. settings: those of run.py."""
        super().__init__()
        if not str(batch_size or 1).isdigit():
            raise InputError(f"batch_size={batch_size}: give the number of prompts that are compressed together")
        if device is not None and (torch.cuda.is_available() or not device.startswith("cuda")):
            settings["model.device"] = device  # the command says cuda:0 by itself, and runs where there is none
        self.run = compose(pretrained, {**settings, "batch_size": int(batch_size or 1)})
        with input_errors(self.run):
            check_model(self.run)
            method = build_method(self.run)
            loaded = get_model(self.run)
            self.eviction = build_eviction(self.run, method, loaded)
            check_turns(self.run, turns=False)
            self.later = build_later(self.run, method, loaded)
        # prompts come with a chat template's tokens in them
        self.model = replace(loaded, special_tokens="control", chat=False)
        self.kept: list[float] = []

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        texts: dict[int, str] = {}
        for numbers in self.cut_batches(requests):
            for number, text in zip(numbers, self.answer([requests[i].args for i in numbers]), strict=True):
                texts[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return [texts[number] for number in range(len(requests))]

    def cut_batches(self, requests: Sequence[Instance]) -> Iterator[list[int]]:
        """Numbers of requests that are answered together: the same generation settings, prompts of similar length."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        size = self.run["batch_size"]
        for group in groups.values():
            group.sort(key=lambda number: -len(requests[number].args[0]))
            yield from (group[i : i + size] for i in range(0, len(group), size))

    def answer(self, prompts: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Prompts with the same generation settings -> their answers, without what they end at."""
        wanted = normalize_gen_kwargs(dict(prompts[0][1]), NEW_TOKENS)
        if wanted.get("do_sample"):
            raise InputError("lukv decodes greedily: leave do_sample and temperature out of the generation settings")
        new, until = wanted["max_gen_toks"], [text for text in wanted["until"] if text]
        longest = None if self.model.max_length is None else self.model.max_length - new
        if longest is not None and longest < 2:
            raise InputError(f"{new} new tokens leave no room in the {self.model.max_length} that the model takes")
        contexts, rests = [], []
        for prompt, _ in prompts:
            context, rest = self.model.prompt_ids(prompt, "", "", layout="plain")
            contexts.append(context if longest is None else context[-(longest - len(rest)) :])
            rests.append(rest)
        later, every = (None, None) if self.later is None else (self.later.eviction, self.later.every)
        cache = compress(self.model, contexts, eviction=self.eviction, later=later, every=every)
        self.kept += (cache.row_nbytes / cache.full_row_nbytes).tolist()
        done = answer(self.model, cache, rests, new, self.model.eos_ids, self.model.stop_at(until))
        return [cut_at(self.model.decode(tokens), until) for tokens in done.tokens]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise InputError(NO_LIKELIHOOD)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise InputError(NO_LIKELIHOOD)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.model.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.model.tokenizer.chat_template if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        return self.model.path.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results."""
        settings = {key: self.run[key] for key in ("method", *BUDGETS, "cache_dtype")}
        kept = sum(self.kept) / len(self.kept) if self.kept else None
        return {"lukv": {**settings, **self.run.parts, "weights_hash": self.model.weights_hash, "kept_share": kept}}


def compose(pretrained: str, settings: Mapping[str, Any]) -> Run:
    """The run of run.py with this model and these settings. Raises InputError as run.py does."""
    model = pretrained if pretrained in GROUPS["model"] else f"hf:{pretrained}"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        texts = normalize_arguments([f"model={model}", *(f"{key}={show(value)}" for key, value in settings.items())])
        if swept := [o.input_line for o in parse_overrides(texts, known_files=True) if o.is_sweep_override()]:
            raise InputError(f"{swept[0]} names several values: give one of them")
        return compose_run(texts)


def show(value: Any) -> str:
    """A value as it is typed on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def cut_at(text: str, ends: Sequence[str]) -> str:
    """The text up to the first of these strings."""
    return text[: min((found for end in ends if (found := text.find(end)) >= 0), default=len(text))]


def main() -> int:
    try:
        cli_evaluate()
    except InputError as error:
        print(f"lm_eval: {join_lines(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
