"""InfiniteBench's tasks: prompts and lengths (kvpress 0.5.5, evaluation/benchmarks/infinite_bench).

`head` holds {context}, and {func} (the function that is called) or {prefix} and {input} in two tasks. Answers may have
twenty tokens more than in the benchmark's own program, as in kvpress.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MORE_TOKENS = 20


@dataclass(frozen=True)
class Text:
    """options: what follows the question in the tasks with four choices."""

    description: str
    tokens: int
    head: str
    cue: str = ""
    options: str = ""

    @property
    def max_new_tokens(self) -> int:
        return self.tokens + MORE_TOKENS


IMPORTANT = "There is an important info hidden inside a lot of irrelevant text. Find it"
QUIZ = "I will quiz you about the important information there.\n\n{context}\n\n"
CHOICES = "A. {A}\nB. {B}\nC. {C}\nD. {D}"

CATALOG: Mapping[str, Text] = {
    "passkey": Text(
        "a number of five digits in noise", 6, f"{IMPORTANT} and memorize them. {QUIZ}", cue="The pass key is:"
    ),
    "number_string": Text(
        "a number of ten digits, some repeated, in noise",
        12,
        f"{IMPORTANT}. {QUIZ}",
        cue="The sequence of digits is",
    ),
    "kv_retrieval": Text(
        "the value of one key of a long JSON object",
        50,
        "Extract the value corresponding to the specified key in the JSON object below.\n\n{context}\n\n",
        cue="The value associated with the specified key is",
    ),
    "longdialogue_qa_eng": Text(
        "who a speaker of a film script is",
        40,
        'Below is a dialogue script where one random occurrence of a character name is replaced with "$$MASK$$", '
        "and you should try to guess who that character is.\n\n{context}\n\n",
        cue="The name that has been replaced with $$MASK$$ is likely",
    ),
    "longbook_qa_eng": Text(
        "questions about a novel",
        40,
        "Read the book below and answer a question. Be very concise in your answer.\n\n{context}\n\n",
        cue="Answer:",
    ),
    "longbook_choice_eng": Text(
        "questions with four choices about a novel",
        40,
        "Read the book and answer the question.\n\n{context}\n\n",
        cue="The letter of the correct answer is",
        options="\n\nOnly one of the following options is correct, tell me the answer using one single letter "
        f"(A, B, C, or D). Don't say anything else.\n{CHOICES}",
    ),
    "longbook_qa_chn": Text(
        "questions about a novel, Chinese", 40, "请根据以下书籍回答我的问题。\n\n{context}\n\n", cue="答案："
    ),
    "code_run": Text(
        "the value that a chain of functions returns",
        5,
        "There is a function called {func} in the following Python code.\n\n{context}\n\n",
        cue="The return value is:",
    ),
    "code_debug": Text(
        "which of four functions crashes",
        5,
        "Following is a Python code where exactly one of the functions/methods has a deliberate error that makes it "
        "crash.\n\n{context}\n\n",
        cue="The correct option is:",
        options=f"\n\nOptions:\n{CHOICES}",
    ),
    "math_find": Text("the largest, smallest ... number of a list", 3, "{prefix}\n\n{context}\n\n{input}\n\n"),
    "math_calc": Text(
        "all intermediate values of a sum",
        30000,
        "Let us calculate the intermediate values of an expression.\n\nExpression: 1 + 3 + 4\nValues: [1, 4, 8]\n\n"
        "Expression: 8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]\n\nExpression: {context}\n\n",
        cue="Values:",
    ),
}
