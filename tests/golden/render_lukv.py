"""LongBench's prompts as the LU-KV authors' evaluation makes them, written out from its description and from nothing of
this project. `python tests/golden/render_lukv.py FOLDER` writes longbench_lukv.json beside it, from FOLDER/TASK.jsonl.

A model is four strings: BOS, what its chat template puts before and after the user's text, and what a base model has.
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path

MARK = "§"  # in the templates: here the compressed context ends
QA = "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
PASSAGES = f"{QA}The following are given passages.\n{{context}}\n\n{QA}§Question: {{input}}\n"
QASPER = (
    "as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based "
    'on the information in the article, write "unanswerable". If the question is a yes/no question, answer "yes", '
    '"no", or "unanswerable". Do not provide any explanation.\n\n'
)
NARRATIVE = "asconcisely as you can, using a single phrase if possible. Do not provide any explanation.\n\n"
CODE = "Please complete the code given below. \n{context}§"

# task: (official text with the border marked, cue, tokens to generate)
TASKS = {
    "narrativeqa": (
        f"You are given a story, which can be either a novel or a movie script, and a question. Answer the question "
        f"{NARRATIVE}Story: {{context}}\n\nNow, answer the question based on the story "
        f"{NARRATIVE}§Question: {{input}}\n\n",
        "Answer:",
        148,
    ),
    "qasper": (
        f"You are given a scientific article and a question. Answer the question {QASPER}Article: {{context}}\n\n "
        f"Answer the question based on the above article {QASPER}§Question: {{input}}\n\n",
        "Answer:",
        148,
    ),
    "multifieldqa_en": (
        "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following "
        "question based on the above "
        "text, only give me the answer and do not output any other words.\n\n§Question: {input}\n",
        "Answer:",
        84,
    ),
    "hotpotqa": (PASSAGES, "Answer:", 52),
    "2wikimqa": (PASSAGES, "Answer:", 52),
    "musique": (PASSAGES, "Answer:", 52),
    "gov_report": (
        "You are given a report by a government agency. Write a one-page summary of the "
        "report.\n\nReport:\n{context}\n\n"
        "§Now, write a one-page summary of the report.\n\n",
        "Summary:",
        532,
    ),
    "qmsum": (
        "You are given a meeting transcript and a query containing a question or instruction. "
        "Answer the query in one or "
        "more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based on the above "
        "meeting transcript in one or "
        "more sentences.\n\n§Query: {input}\n",
        "Answer:",
        532,
    ),
    "multi_news": (
        "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\n"
        "§Now, write a one-page summary of all the news.\n\n",
        "Summary:",
        532,
    ),
    "passage_count": (
        "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please carefully read "
        "these paragraphs and determine how many unique paragraphs there are after removing "
        "duplicates. In other words, how "
        "many non-repeating paragraphs are there in total?\n\n{context}\n\n§Please enter the final "
        "count of unique paragraphs "
        "after removing duplicates. The output format should only contain the number, such as 1, 2, 3, and so on.\n\n",
        "The final answer is: ",
        52,
    ),
    "passage_retrieval_en": (
        "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which "
        "paragraph the abstract is "
        "from.\n\n{context}\n\nThe following is an abstract.\n\n§{input}\n\nPlease enter the number "
        "of the paragraph that the "
        'abstract is from. The answer format must be like "Paragraph 1", "Paragraph 2", etc.\n\n',
        "The answer is: ",
        52,
    ),
    "trec": (
        "Please determine the type of the question below. Here are some examples of questions.\n\n{context}\n§{input}",
        "Type:",
        84,
    ),
    "triviaqa": (
        "Answer the question based on the given passage. Only give me the answer and do not output "
        "any other words. The "
        "following are some examples.\n\n{context}\n\n§{input}",
        "",
        52,
    ),
    "samsum": (
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n{context}\n\n§{input}",
        "Summary:",
        148,
    ),
    "lcc": (CODE, "Next line of code:\n", 84),
    "repobench-p": (f"{CODE}{{input}}", "Next line of code:\n", 84),
}
BARE = ("triviaqa", "samsum", "lcc", "repobench-p", "trec")
REMOVED = {"trec": "Type:", "triviaqa": "Answer:", "samsum": "Summary:"}  # from the end of the input, if it ends so
BOS, USER, END = "<s>", "[user]", "[/user][assistant]"  # of the model that the golden cases are made with


def render(task: str, row: dict[str, str], chat: bool) -> tuple[str, str]:
    """(what is compressed, what is asked) as texts, special tokens written out."""
    text, cue, _ = TASKS[task]
    before, after = text.split(MARK)
    asked = row["input"]
    if task in REMOVED and asked.endswith(REMOVED[task]):
        asked = asked[: len(asked) - len(REMOVED[task])]
    context = before.replace("{context}", row["context"])
    question = after.replace("{input}", asked) + cue
    if task in BARE:
        return context, question
    return (BOS + USER + context, question + END) if chat else (BOS + context, question + "\n")


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


ROW = {"context": "One.\nTwo {x}.\n", "input": "What then?\nType:"}  # a made-up one


def main(folder: Path) -> None:
    cases: dict[str, object] = {}
    for task, (_, _, tokens) in TASKS.items():
        made = {chat: render(task, ROW, chat == "chat") for chat in ("chat", "base")}
        rows = {}
        for line in (folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()[:3]:
            row = json.loads(line)
            rows[row["_id"]] = {chat: [*map(digest, render(task, row, chat == "chat"))] for chat in ("chat", "base")}
        short = {chat: [digest(context), question] for chat, (context, question) in made.items()}
        cases[task] = {"max_new_tokens": tokens, "made_up": short, "rows": rows}
    target = Path(__file__).with_name("longbench_lukv.json")
    target.write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
