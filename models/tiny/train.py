"""Train the embedded model: one command, and the same weights every time on the same machine.

    python -m models.tiny.train                              # the whole recipe (train.yaml), resumed if broken off
    python -m models.tiny.train start=models/tiny cycle=1    # its second cycle only, from given weights
    python -m models.tiny.train recipe=small                 # the larger model (small.yaml), on a GPU
    python -m models.tiny.train cycles.0.phases.0.steps=50 seed=1 work=runs/other

Each step's data and its choice of tokens depend on (seed, step) only, so a run that stops and resumes ends in the
weights of one that did not.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from models.tiny import attention, tokenizer
from models.tiny.data import ANSWER, Encoder, Rows
from models.tiny.evaluate import evaluate
from models.tiny.model import config, initialise
from models.tiny.optim import Muon
from models.tiny.plan import Plan

FOLDER = Path(__file__).parent
RECIPES = {"tiny": "train.yaml", "small": "small.yaml"}
MISSING = object()


class Trainer:
    def __init__(self, settings: DictConfig) -> None:
        self.settings, self.step = settings, 0
        self.device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(settings.threads)
        self.work = Path(settings.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.encoder = Encoder(AutoTokenizer.from_pretrained(FOLDER))
        text = self.encoder.tokenizer
        shape = config(len(text), text.bos_token_id, text.eos_token_id, text.pad_token_id, **to_dict(settings.model))
        self.model: PreTrainedModel = initialise(shape, settings.seed).to(self.device)
        if self.device == "cpu":
            self.model.set_attn_implementation(attention.NAME)
        self.plan = Plan(settings.cycles)
        self.rows = Rows(self.encoder, self.plan, settings.seed)
        if settings.start is not None:
            start = AutoModelForCausalLM.from_pretrained(settings.start, dtype=torch.float32, use_safetensors=True)
            self.model.load_state_dict(start.state_dict())
            self.step = self.plan.starts[settings.cycle]
        self.new_optimisers()
        self.tracker = start_tracker(settings)

    def new_optimisers(self) -> None:
        trained = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in trained if p.dim() == 2 and "embed" not in n]
        others = [p for n, p in trained if p.dim() != 2 or "embed" in n]
        self.optimisers = [
            Muon(matrices, lr=0.0, weight_decay=self.settings.weight_decay),
            torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    # ---- one step
    def loss(self, ids: Tensor, weights: Tensor, draw: int, balance: float = 0.0) -> tuple[Tensor, dict[str, float]]:
        """Cross entropy of the answers, plus that of a few other tokens (drawn from `draw`) at a small weight.

        balance: 0 gives every answer token the same weight, 1 every row, and numbers in between interpolate. A row with
        many short answers has more answer tokens than a row with a single long one.
        """
        targets, weights = ids[:, 1:], weights[:, 1:]
        drawn = torch.rand(weights.shape, generator=torch.Generator().manual_seed(draw)).to(self.device)
        answers = weights == ANSWER
        chosen = answers | ((weights > 0) & (drawn < self.settings.text_share))
        with torch.autocast(self.device, dtype=torch.bfloat16):
            hidden = self.model.model(ids, use_cache=False).last_hidden_state[:, :-1]
            logits = self.model.lm_head(hidden[chosen]).float()
        each, of_answer = F.cross_entropy(logits, targets[chosen], reduction="none"), answers[chosen]
        share = (answers.sum(1, keepdim=True).clamp(min=1) ** -balance).expand_as(answers)[chosen][of_answer]
        answer, text = (each[of_answer] * share).sum() / share.sum(), each[~of_answer].mean()
        right = (logits.argmax(-1) == targets[chosen])[of_answer].float().mean()
        facts = {"answer_loss": answer.item(), "text_loss": text.item(), "answer_accuracy": right.item()}
        return answer + self.settings.text_loss * text, facts

    def train_step(self, rows: tuple[Tensor, Tensor, int] | None = None) -> dict[str, float]:
        """Train on the step's own rows. `rows` are these rows if a loader has drawn them already."""
        cycle, phase = self.plan.at(self.step)
        if self.step in self.plan.starts[1:]:  # a cycle begins with the weights that the one before it would export
            for weight in self.model.parameters():
                weight.data = weight.data.bfloat16().float()
            self.new_optimisers()
        ids, weights, draw = rows or self.rows[self.step]
        loss, facts = self.loss(ids.to(self.device), weights.to(self.device), draw, phase.get("balance", 0.0))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.optimisers[1].param_groups[0]["params"], 1.0)
        scale = self.plan.rate(self.step)
        for optimiser, rate in zip(self.optimisers, (cycle.muon_lr, cycle.adam_lr), strict=True):
            optimiser.param_groups[0]["lr"] = rate * scale
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        return facts | {"length": ids.shape[1], "tokens": ids.numel()}

    # ---- checkpoints: tensors in safetensors, written beside the old file and moved over it
    def state(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": weight.detach() for name, weight in self.model.named_parameters()}
        for index, optimiser in enumerate(self.optimisers):
            for parameter, values in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{index}.{parameter}.{name}": torch.as_tensor(v) for name, v in values.items()}
        return tensors | {"step": torch.tensor(self.step)}

    def save(self) -> None:
        save_file(self.state(), self.work / "new.safetensors")
        (self.work / "new.safetensors").replace(self.work / "checkpoint.safetensors")

    def resume(self) -> None:
        if not (self.work / "checkpoint.safetensors").exists():
            return
        tensors = load_file(self.work / "checkpoint.safetensors", device=self.device)
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                weight.copy_(tensors[f"model.{name}"])
        for index, optimiser in enumerate(self.optimisers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimiser.{index}."):
                    _, _, parameter, name = key.split(".")
                    state.setdefault(int(parameter), {})[name] = value
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        self.step = int(tensors["step"])

    # ---- the whole run
    def run(self) -> None:
        self.resume()
        total, since, seen = self.plan.steps, time.perf_counter(), 0
        facts: list[dict[str, float]] = []
        steps = range(self.step, total)
        loader = DataLoader(self.rows, sampler=steps, batch_size=None, num_workers=self.settings.workers)
        for rows in tqdm(loader, initial=self.step, total=total, disable=not sys.stderr.isatty()):
            facts.append(self.train_step(rows))
            seen += int(facts[-1]["tokens"])
            if self.step % 50 == 0 or self.step == total:
                mean = {name: round(sum(f[name] for f in facts) / len(facts), 4) for name in facts[0]}
                speed = round(seen / (time.perf_counter() - since))
                rate = round(self.plan.rate(self.step - 1), 3)
                self.log({"step": self.step, **mean, "rate": rate, "tokens_per_s": speed})
                facts, seen, since = [], 0, time.perf_counter()
            if self.step % self.settings.evaluate_every == 0 or self.step == total:
                length = min(max(256, *self.plan.at(self.step - 1)[1].lengths), self.settings.evaluate_longest)
                scores = evaluate(self.model, self.encoder, length, self.settings.evaluate_samples)
                tokens = self.plan.tokens(self.step)
                self.log({"step": self.step, "trained_tokens": tokens, "evaluated_at": length, **scores})
                since = time.perf_counter()
            if self.step % self.settings.checkpoint_every == 0 or self.step == total:
                self.save()
        self.export()

    def log(self, line: dict[str, float]) -> None:
        with (self.work / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        tqdm.write(json.dumps(line), file=sys.stdout)
        sys.stdout.flush()
        if self.tracker is not None:
            self.tracker.log(line, step=int(line["step"]))

    def export(self) -> None:
        """Write the folder that AutoModelForCausalLM and AutoTokenizer read, with weights in bfloat16."""
        out = Path(self.settings.out)
        export_weights(self.model, out)
        tokenizer.save(out)


def export_weights(model: PreTrainedModel, folder: Path) -> None:
    model.set_attn_implementation("sdpa")
    model.to(torch.bfloat16).save_pretrained(folder)


def to_dict(settings: DictConfig) -> dict[str, Any]:
    """Settings as a plain dict, which transformers and wandb need."""
    return {str(name): value for name, value in OmegaConf.to_container(settings, resolve=True).items()}  # type: ignore


def start_tracker(settings: DictConfig) -> Any:
    """A Weights & Biases run with track=wandb, else None. Its id is the work folder's name, so that it is resumed,
    too."""
    if settings.track == "none":
        return None
    if settings.track != "wandb":
        raise ValueError(f"track={settings.track}: choose none or wandb")
    try:
        import wandb  # optional
    except ImportError as error:
        raise ValueError("track=wandb needs the package: pip install wandb, or track=none") from error
    name = Path(settings.work).name
    return wandb.init(project="lukv-model", id=name, name=name, resume="allow", config=to_dict(settings))


def read_recipe(arguments: list[str]) -> DictConfig:
    """train.yaml, with the changes of NAME.yaml for `recipe=NAME`, and then the `key=value` overrides in order.

    An override is, for example, "cycles.0.phases.0.steps=10". Raises ValueError for a recipe or key that does not
    exist.
    """
    named = [argument.removeprefix("recipe=") for argument in arguments if argument.startswith("recipe=")]
    settings = OmegaConf.load(FOLDER / "train.yaml")
    for name in named:
        if name not in RECIPES:
            raise ValueError(f"there is no recipe={name}: choose {' or '.join(RECIPES)}")
        settings = OmegaConf.merge(settings, OmegaConf.load(FOLDER / RECIPES[name]))
    assert isinstance(settings, DictConfig)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key == "recipe":
            continue
        if not equals or OmegaConf.select(settings, key, default=MISSING) is MISSING:
            raise ValueError(f"{argument!r} is not key=value with a key of train.yaml: {', '.join(map(str, settings))}")
        OmegaConf.update(settings, key, OmegaConf.create(f"value: {value}").value)
    return settings


def main(arguments: list[str]) -> None:
    try:
        trainer = Trainer(read_recipe(arguments))
    except ValueError as error:
        sys.exit(str(error))
    trainer.run()


if __name__ == "__main__":
    main(sys.argv[1:])
