"""LongBench's 21 tasks (arXiv 2308.14508): prompts, lengths, metrics (THUDM/LongBench 2e00731, config/*.json).

A prompt is in four pieces, which every protocol puts together in its own way; the official prompt is all four.
Spelling is original ("asconcisely").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """`head` holds {context}; `second` is the instruction repeated after it; `question` may hold {input}; `cue` starts
    the answer. `kvpress_cue`: where the input ends in a cue, kvpress adds its own (and means to remove the input's)."""

    description: str
    metric: str
    max_new_tokens: int
    head: str
    second: str = ""
    question: str = ""
    cue: str = ""
    kvpress_cue: str = ""
    chinese: bool = False
    chat: bool = True
    first_line: bool = False
    in_e: bool = False


CONCISE = "asconcisely as you can, using a single phrase if possible. Do not provide any explanation.\n\n"
QASPER = (
    "as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based "
    'on the information in the article, write "unanswerable". If the question is a yes/no question, answer "yes", '
    '"no", or "unanswerable". Do not provide any explanation.\n\n'
)
PASSAGES = (
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
)


def passages(description: str, in_e: bool = False) -> Entry:
    return Entry(
        description,
        "qa_f1",
        32,
        head=PASSAGES + "The following are given passages.\n{context}\n\n",
        second=PASSAGES,
        question="Question: {input}\n",
        cue="Answer:",
        in_e=in_e,
    )


def code(description: str, question: str = "") -> Entry:
    return Entry(
        description,
        "code_similarity",
        64,
        head="Please complete the code given below. \n{context}",
        question=question,
        cue="Next line of code:\n",
        chat=False,
        in_e=True,
    )


CATALOG: Mapping[str, Entry] = {
    "narrativeqa": Entry(
        "questions about a story",
        "qa_f1",
        128,
        head="You are given a story, which can be either a novel or a movie script, and a question. "
        f"Answer the question {CONCISE}Story: {{context}}\n\n",
        second=f"Now, answer the question based on the story {CONCISE}",
        question="Question: {input}\n\n",
        cue="Answer:",
    ),
    "qasper": Entry(
        "questions about a scientific article",
        "qa_f1",
        128,
        head=f"You are given a scientific article and a question. Answer the question {QASPER}Article: {{context}}\n\n",
        second=f" Answer the question based on the above article {QASPER}",
        question="Question: {input}\n\n",
        cue="Answer:",
        in_e=True,
    ),
    "multifieldqa_en": Entry(
        "questions about texts of many fields",
        "qa_f1",
        64,
        head="Read the following text and answer briefly.\n\n{context}\n\n",
        second="Now, answer the following question based on the above text, "
        "only give me the answer and do not output any other words.\n\n",
        question="Question: {input}\n",
        cue="Answer:",
        in_e=True,
    ),
    "multifieldqa_zh": Entry(
        "questions about texts of many fields, Chinese",
        "qa_f1_zh",
        64,
        head="阅读以下文字并用中文简短回答：\n\n{context}\n\n",
        second="现在请基于上面的文章回答下面的问题，只告诉我答案，不要输出任何其他字词。\n\n",
        question="问题：{input}\n",
        cue="回答：",
        chinese=True,
    ),
    "hotpotqa": passages("questions over two Wikipedia passages among ten", in_e=True),
    "2wikimqa": passages("questions over several Wikipedia passages", in_e=True),
    "musique": passages("questions of two to four steps over Wikipedia passages"),
    "dureader": Entry(
        "questions over several documents, Chinese",
        "rouge_l_zh",
        128,
        head="请基于给定的文章回答下述问题。\n\n文章：{context}\n\n",
        second="请基于上述文章回答下面的问题。\n\n",
        question="问题：{input}\n",
        cue="回答：",
        chinese=True,
    ),
    "gov_report": Entry(
        "summaries of government reports",
        "rouge_l",
        512,
        head="You are given a report by a government agency. Write a one-page summary of the report.\n\n"
        "Report:\n{context}\n\n",
        question="Now, write a one-page summary of the report.\n\n",
        cue="Summary:",
        in_e=True,
    ),
    "qmsum": Entry(
        "answers from meeting transcripts",
        "rouge_l",
        512,
        head="You are given a meeting transcript and a query containing a question or instruction. "
        "Answer the query in one or more sentences.\n\nTranscript:\n{context}\n\n",
        second="Now, answer the query based on the above meeting transcript in one or more sentences.\n\n",
        question="Query: {input}\n",
        cue="Answer:",
    ),
    "multi_news": Entry(
        "summaries of several news articles",
        "rouge_l",
        512,
        head="You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\n",
        question="Now, write a one-page summary of all the news.\n\n",
        cue="Summary:",
        in_e=True,
    ),
    "vcsum": Entry(
        "summaries of meetings, Chinese",
        "rouge_l_zh",
        512,
        head="下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n{context}\n\n",
        cue="会议总结：",
        chinese=True,
    ),
    "trec": Entry(
        "types of questions, from examples",
        "classification",
        64,
        head="Please determine the type of the question below. Here are some examples of questions.\n\n{context}\n",
        question="{input}",
        kvpress_cue="Type:",
        chat=False,
        first_line=True,
        in_e=True,
    ),
    "triviaqa": Entry(
        "trivia with a passage, from examples",
        "qa_f1",
        32,
        head="Answer the question based on the given passage. "
        "Only give me the answer and do not output any other words. The following are some examples.\n\n{context}\n\n",
        question="{input}",
        kvpress_cue="Answer:",
        chat=False,
        first_line=True,
        in_e=True,
    ),
    "samsum": Entry(
        "summaries of dialogues, from examples",
        "rouge_l",
        128,
        head="Summarize the dialogue into a few short sentences. The following are some examples.\n\n{context}\n\n",
        question="{input}",
        kvpress_cue="Summary:",
        chat=False,
        first_line=True,
        in_e=True,
    ),
    "lsht": Entry(
        "classes of news, from examples, Chinese",
        "classification",
        64,
        head="请判断给定新闻的类别，下面是一些例子。\n\n{context}\n",
        question="{input}",
        chinese=True,
        chat=False,
        first_line=True,
    ),
    "passage_count": Entry(
        "how many passages are different",
        "count",
        32,
        head="There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. "
        "Please carefully read these paragraphs "
        "and determine how many unique paragraphs there are after removing duplicates. "
        "In other words, how many non-repeating paragraphs are there in total?\n\n{context}\n\n",
        question="Please enter the final count of unique paragraphs after removing duplicates. "
        "The output format should only contain the number, such as 1, 2, 3, and so on.\n\n",
        cue="The final answer is: ",
        in_e=True,
    ),
    "passage_retrieval_en": Entry(
        "which passage an abstract is from",
        "retrieval",
        32,
        head="Here are 30 paragraphs from Wikipedia, along with an abstract. "
        "Please determine which paragraph the abstract is from.\n\n{context}\n\n",
        second="The following is an abstract.\n\n",
        question="{input}\n\nPlease enter the number of the paragraph that the abstract is from. "
        'The answer format must be like "Paragraph 1", "Paragraph 2", etc.\n\n',
        cue="The answer is: ",
        in_e=True,
    ),
    "passage_retrieval_zh": Entry(
        "which passage an abstract is from, Chinese",
        "retrieval_zh",
        32,
        head="以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n{context}\n\n",
        second="下面是一个摘要\n\n",
        question='{input}\n\n请输入摘要所属段落的编号。答案格式必须是"段落1"，"段落2"等格式\n\n',
        cue="答案是：",
        chinese=True,
    ),
    "lcc": code("the next line of a file"),
    "repobench-p": code("the next line of a file, others of its repository before it", question="{input}"),
}

ENGLISH = tuple(name for name, entry in CATALOG.items() if not entry.chinese)
"""The 16 tasks of most tables."""
