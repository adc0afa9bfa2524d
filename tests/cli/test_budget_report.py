"""What a run kept, per layer and KV head, in its result and for each sample: exactly the budget."""

from __future__ import annotations

import json

import numpy as np

from lukv.allocation import Budget


def test_kept_counts_per_layer_and_head(command, settings, tmp_path):
    assert command("method=adakv", "budget=0.2", "reference=null", *settings) == 0
    (folder,) = (path.parent for path in tmp_path.glob("*/result.json"))
    budget = json.loads((folder / "result.json").read_text())["budget"]
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    counts = np.array([line["kept"] for line in lines])
    assert counts.shape == (4, 2, 2)  # samples, layers, KV heads
    for line, count in zip(lines, counts, strict=True):
        assert count.sum(1).tolist() == [Budget(share=0.2).entries(line["context_tokens"], 2)] * 2
    assert (counts[..., 0] != counts[..., 1]).any()  # AdaKV's heads differ
    np.testing.assert_allclose(budget["entries"], counts.mean(0), atol=0.005)
    np.testing.assert_allclose(np.sum(budget["entries"]), budget["kept_entries"], atol=0.02)
    tokens = np.array([line["context_tokens"] for line in lines])
    np.testing.assert_allclose(budget["heads"], (counts / tokens[:, None, None]).mean(0), atol=5e-5)
