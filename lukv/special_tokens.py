"""Special tokens that are typed in a text: they stay text, while those of the chat template stay control tokens.

A tokenizer cannot tell the two apart once they stand in one string, and to tokenize the string in parts would change
the tokens where parts meet. So a special token typed in a text gets a stand-in, until the template is around the text.
Then the two change places: a copy of the tokenizer, whose special tokens are spelled like the stand-ins, reads the
template's as control tokens, and what was typed as text.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as Backend

BEGIN, END = "\ufdd0", "\ufdd1"  # noncharacters: Unicode has them for use inside a program, never in texts


class SpecialTokens:
    """The special tokens of one transformers tokenizer, and how a text is tokenized in which some are typed.

    They are those that the tokenizer calls special, and those added ones that its chat template writes (`<think>` is
    not special in many). Blanks and line ends are no such tokens, although some templates and vocabularies hold them.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        template = str(tokenizer.chat_template or "")
        added = tokenizer.added_tokens_decoder.values()
        texts = [a.content for a in added if a.special or (a.content in template and not a.content.isspace())]
        self.stand_ins = {text: f"{BEGIN}{i}{END}" for i, text in enumerate(texts)}
        self.swapped = self.stand_ins | {stand_in: text for text, stand_in in self.stand_ins.items()}

    def hide(self, text: str) -> str:
        """The text with stand-ins for the special tokens in it. Raises ValueError for a text that holds the characters
        that stand-ins are made of."""
        if BEGIN in text:
            raise ValueError(f"the text holds the noncharacter U+{ord(BEGIN):X}, which no text may: remove it")
        return self._replace(self.stand_ins, text)

    def encode(self, text: str) -> list[int]:
        """Token ids: special tokens are control tokens, stand-ins the text that they stand for. Raises ValueError for a
        text with stand-ins where the tokenizer has no tokenizer.json, of which a copy can be made."""
        if BEGIN not in text:
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        return self._copy.encode(self._replace(self.swapped, text), add_special_tokens=False).ids

    def _replace(self, changes: dict[str, str], text: str) -> str:
        """Longer ones first, as tokenizers do."""
        if not changes:
            return text
        pattern = "|".join(map(re.escape, sorted(changes, key=len, reverse=True)))
        return re.sub(pattern, lambda found: changes[found[0]], text)

    @cached_property
    def _copy(self) -> Backend:
        """The tokenizer with stand-ins as its special tokens, under the same ids."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                "special tokens are typed in the text, and this tokenizer (it has no tokenizer.json) cannot read them "
                "as text: use model.special_tokens=control"
            )
        whole = json.loads(backend.to_str())
        for token in whole["added_tokens"]:
            token["content"] = self.stand_ins.get(token["content"], token["content"])
        model, names = whole["model"], self.stand_ins
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
        else:  # unigram: pieces with their scores
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token") is not None:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        if "merges" in model:  # a merge of letters into a special token would make one of text
            pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
            model["merges"] = [pair for pair in pairs if "".join(pair) not in names]
        return Backend.from_str(json.dumps(whole))
