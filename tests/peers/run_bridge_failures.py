"""What the bridge does when it cannot, run by kvpress's Python: raises AssertionError unless all is as it should be."""

from pathlib import Path

import kvpress
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lukv.backend.generate import answer
from lukv.bridges.kvpress import compress
from lukv.model import load

TINY = Path(__file__).parents[2] / "models" / "tiny"


class Failing(kvpress.KnormPress):
    def compress(self, *args):
        raise RuntimeError("in the press")


def message_of(error: type[Exception], call) -> str:
    try:
        call()
    except error as raised:
        return str(raised)
    raise AssertionError(f"no {error.__name__}")


def main() -> None:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.randint(5, 1000, (2, 60), generator=torch.Generator().manual_seed(0))
    half = kvpress.KnormPress(0.5)

    assert message_of(RuntimeError, lambda: compress(model, ids, Failing(0.5))) == "in the press"
    assert model.config._attn_implementation == "eager"
    assert not any(layer.self_attn._forward_hooks for layer in model.model.layers)
    assert "60 and 61 tokens" in message_of(ValueError, lambda: compress(model, [[5] * 60, [5] * 61], half))
    assert "no tokens" in message_of(ValueError, lambda: compress(model, [], half))
    assert model.config._attn_implementation == "eager"

    config = AutoConfig.for_model(
        "mistral", vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=16, max_position_embeddings=64,
    )  # fmt: skip
    windows = AutoModelForCausalLM.from_config(config)
    said = message_of(ValueError, lambda: compress(windows, ids % 50, half))
    assert "window" in said, said

    # masks that an earlier press left are not taken for this one's, and a batch is what its rows are alone
    batch = compress(model, ids, kvpress.AdaKVPress(kvpress.KnormPress(0.5)))
    alone = [compress(model, row[None], kvpress.AdaKVPress(kvpress.KnormPress(0.5))) for row in ids]
    assert batch.kept_counts[:, 0].tolist() == alone[0].kept_counts[:, 0].tolist()
    assert batch.kept_counts[:, 1].tolist() == alone[1].kept_counts[:, 0].tolist()
    questions = [[7, 8], [9]]
    together = answer(model, batch, questions, 6).tokens
    assert together == [answer(model, c, [q], 6).tokens[0] for c, q in zip(alone, questions, strict=True)]
    eager = compress(model, ids, kvpress.ObservedAttentionPress(0.5), prefill="eager")
    assert (eager.kept_counts == 30).all()

    # a model of ours, with its tokenizer
    loaded = load(TINY, dtype="float32", device="cpu")
    ours = compress(loaded, [ids[0].tolist()], kvpress.AdaKVPress(kvpress.KnormPress(0.5)))
    assert answer(loaded, ours, [questions[0]], 6).tokens[0] == together[0]

    # transformers' own generate() goes on from the packed cache
    batch.rollback()
    whole = torch.cat([ids, torch.tensor([[7, 8], [7, 8]])], dim=1)
    made = model.generate(
        whole, past_key_values=batch, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    batch.rollback()
    assert made[:, 62:].tolist() == answer(model, batch, [[7, 8], [7, 8]], 4).tokens


if __name__ == "__main__":
    main()
