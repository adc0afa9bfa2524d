"""The texts RULER takes from others, read from the user's folder `benchmark.sources`: none of them is ours to ship."""

from __future__ import annotations

import json
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from evals.rows import check_references
from evals.ruler.essays import Essays
from evals.ruler.qa import Collection, Question

ESSAYS = "PaulGrahamEssays.json"
PUNKT = "punkt_tab/english"
SQUAD = "squad.json"
HOTPOT = "hotpotqa.json"
WORDS = "english_words.json"

WHERE = {
    ESSAYS: "made by RULER's scripts/data/synthetic/json/download_paulgraham_essay.py",
    PUNKT: "the folder punkt_tab/english of NLTK's data: python -m nltk.downloader punkt_tab",
    SQUAD: "SQuAD 2.0's dev-v2.0.json under this name: https://rajpurkar.github.io/SQuAD-explorer",
    HOTPOT: "HotpotQA's hotpot_dev_distractor_v1.json under this name: https://hotpotqa.github.io",
    WORDS: "from RULER's repository (Git LFS): scripts/data/synthetic/json/english_words.json",
}


class Sources:
    """Files of RULER's scripts/data/synthetic/json by its names, and NLTK's punkt_tab/. Read when first asked for."""

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = Path(folder).expanduser() if folder is not None else None
        if self.folder is not None and not self.folder.is_dir():
            raise FileNotFoundError(f"benchmark.sources={folder} is not a folder")

    def missing(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in names if self.folder is None or not (self.folder / name).exists()]

    def path(self, name: str) -> Path:
        if self.folder is None:
            raise FileNotFoundError(f"{name} is needed ({WHERE[name]}): put it into a folder, benchmark.sources=FOLDER")
        if not (self.folder / name).exists():
            raise FileNotFoundError(f"{self.folder / name} is missing: {WHERE[name]}")
        return self.folder / name

    def fingerprints(self) -> dict[str, str]:
        """sha256, 16 digits, of the files that are there."""
        files = [name for name in WHERE if name != PUNKT and not self.missing((name,))]
        return {name: sha256(self.path(name).read_bytes()).hexdigest()[:16] for name in files}

    def json(self, name: str) -> Any:
        path = self.path(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); it should be {WHERE[name]}") from error

    @cached_property
    def essays(self) -> Essays:
        content = self.json(ESSAYS)
        if not isinstance(content, dict) or not isinstance(content.get("text"), str):
            raise ValueError(f'{self.path(ESSAYS)} should be {{"text": ...}}, {WHERE[ESSAYS]}')
        return Essays(content["text"], self.path(PUNKT))

    @cached_property
    def squad(self) -> Collection:
        """Answerable questions only; `related` documents are the other paragraphs of the article."""
        try:
            articles = [article["paragraphs"] for article in self.json(SQUAD)["data"]]
            documents = sorted({paragraph["context"] for article in articles for paragraph in article})
            number = {text: i for i, text in enumerate(documents)}
            questions = []
            for article in articles:
                neighbours = [number[paragraph["context"]] for paragraph in article]
                for paragraph in article:
                    own = number[paragraph["context"]]
                    related = tuple(other for other in neighbours if other != own)
                    for asked in paragraph["qas"]:
                        if not asked["is_impossible"]:
                            texts = [answer["text"] for answer in asked["answers"]]
                            answers = check_references(texts, "answers", f"{self.path(SQUAD)}, {asked['question']!r}")
                            questions.append(Question(asked["question"], answers, (own,), related))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.path(SQUAD)} lacks {error}; it should be {WHERE[SQUAD]}") from error
        return Collection(str(self.path(SQUAD)), tuple(questions), tuple(documents))

    @cached_property
    def hotpotqa(self) -> Collection:
        try:
            rows = self.json(HOTPOT)
            texts = [[f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]] for row in rows]
            documents = sorted({text for row in texts for text in row})
            number = {text: i for i, text in enumerate(documents)}
            questions = [
                Question(row["question"], self.hotpotqa_answer(row), tuple(number[text] for text in own))
                for row, own in zip(rows, texts, strict=True)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.path(HOTPOT)} is not HotpotQA's ({error}); it should be {WHERE[HOTPOT]}"
            ) from error
        return Collection(str(self.path(HOTPOT)), tuple(questions), tuple(documents))

    def hotpotqa_answer(self, row: dict[str, Any]) -> tuple[str, ...]:
        return check_references([row["answer"]], "answer", repr(row["question"]))

    @cached_property
    def english_words(self) -> list[str]:
        return list(self.json(WORDS).values())
