"""Chat templates: where the user's text ends, traces that they open, and those that fail."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lukv.chat import drop_trace, render, render_turn

BODY = "{% for m in messages %}<U>{{ m.content | trim }}</U>{% endfor %}"
QWEN3 = BODY + "<A>{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
DEEPSEEK = BODY + "<A>{% if thinking is defined and thinking %}<think>{% else %}</think>{% endif %}"


class Words:
    """A tokenizer that has nothing but a chat template."""

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def apply_chat_template(self, messages, **options) -> str:
        return ImmutableSandboxedEnvironment().from_string(self.chat_template).render(messages=messages, **options)


@given(st.text(alphabet="ab# \n", max_size=40))
def test_the_text_is_found_wherever_it_ends(text: str) -> None:
    """Also one that holds long rows of the sign that marks its end, and beside a template that does."""
    for template in (BODY + "<A>", "#" * 12 + BODY + "#" * 11, BODY):
        head, tail = render(Words(template), text)
        before, after = template.split("{% for")[0], template.rpartition("%}")[2]
        assert (head, tail) == (f"{before}<U>{text.lstrip()}", f"</U>{after}")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}", "cannot be rendered, "),
        ("{{ messages[0].content + 1 }}", "cannot be rendered, "),
        ("{{ nothing.there }}", "cannot be rendered, 'nothing' is undefined"),
        ("{{ 1 // 0 }}", "cannot be rendered, "),
        ("hello", "does not hold the user's text, it must be there once"),
        (BODY + BODY, "holds the user's text 2 times, it must be there once"),
        (BODY + "<|think|>", r"may leave a trace open \(<\|think\|>\)"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(template: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"^its chat template {says}") as error:
        render(Words(template), "text")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(": use model.chat=false")


def test_the_templates_own_switch() -> None:
    assert render(Words(QWEN3), "x")[1] == "</U><A><think>\n\n</think>\n\n"
    assert render(Words(QWEN3), "x", thinking=True)[1] == "</U><A>"
    assert render(Words(DEEPSEEK), "x")[1] == "</U><A></think>"


@pytest.mark.parametrize("opened", ["<think>", "<think>\n", "<seed:think>", "[THINK]", "<|START_THINKING|>"])
def test_a_trace_that_the_template_opens_is_closed(opened: str) -> None:
    head, tail = render(Words(BODY + "<A>" + opened), "mind the <think> here")
    closed = {"[": "[/THINK]", "|": "<|END_THINKING|>", "s": "</seed:think>"}
    end = closed.get(opened[1], closed.get(opened[0], "</think>"))
    assert head == "<U>mind the <think> here"
    assert tail == f"</U><A>{opened.strip()}\n\n{end}\n\n"
    with pytest.raises(ValueError, match=r"opens the trace itself .*: use model\.thinking=false"):
        render(Words(BODY + "<A>" + opened), "x", thinking=True)


@pytest.mark.parametrize(
    ("said", "answer", "dropped"),
    [
        ("Oslo.", "Oslo.", False),
        ("", "", False),
        ("<think>Is it Rome? No.</think>Oslo", "Oslo", True),
        ("\n<think>\nIs it <b>Rome</b>?\n</think>\n\nOslo", "\n\nOslo", True),
        ("Is it Rome? No.\n</think>Oslo", "Oslo", True),
        ("<think>Is it Rome", "", True),
        ("[THINK]Rome?[/THINK]Oslo", "Oslo", True),
        ("<think>Rome?</think>", "", True),
        ("The tags are <think> and </think>.", "The tags are <think> and </think>.", False),
        ("The tag is <think>.", "The tag is <think>.", False),
    ],
)
@pytest.mark.parametrize("width", [1, 3])
def test_a_trace_is_no_part_of_the_answer(said: str, answer: str, dropped: bool, width: int) -> None:
    """Tokens of several letters: one that holds the tag's end belongs to the trace."""
    pieces = [said[i : i + width] for i in range(0, len(said), width)]
    rest, found = drop_trace(list(range(len(pieces))), lambda ids: "".join(pieces[i] for i in ids))
    assert found == dropped
    assert answer.endswith(text := "".join(pieces[i] for i in rest))
    assert len(answer) - len(text) < width


TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}<assistant>"


@given(st.text(alphabet="ab#% \n", max_size=40))
def test_a_second_turn_is_what_follows_the_answer(text: str) -> None:
    """Also of a text that holds the signs that mark where things end. Put behind the first turn, it is the template's
    own whole conversation."""
    for template in (TURNS, "#" * 12 + "%" * 11 + TURNS):
        tokenizer = Words(template)
        first, between = render(tokenizer, "first"), render_turn(tokenizer, text)
        messages = [("user", "first"), ("assistant", "said"), ("user", text)]
        whole = tokenizer.apply_chat_template([{"role": role, "content": said} for role, said in messages])
        assert "".join([*first, "said", *between]) == whole


def test_a_template_without_earlier_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="does not hold an earlier answer as it is"):
        render_turn(Words("{{ messages[-1].content }}<A>"), "x")
    with pytest.raises(ValueError, match=r"cannot be rendered, .* has no element 3: use model.chat=false"):
        render_turn(Words("{{ messages[2].content }}{{ messages[3].content }}"), "x")
