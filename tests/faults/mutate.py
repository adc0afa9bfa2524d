"""A sound file with bytes flipped, cut, doubled, put in or zeroed."""

from __future__ import annotations

from hypothesis import strategies as st

Mutation = tuple[str, float, bytes]
mutations = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "put", "double", "zero"]), st.floats(0, 1), st.binary(min_size=1, max_size=8)
    ),
    min_size=1,
    max_size=4,
)


def mutated(content: bytes, changes: list[Mutation]) -> bytes:
    for kind, where, material in changes:
        place = int(where * len(content))
        if kind == "flip":
            content = content[:place] + material + content[place + len(material) :]
        elif kind == "cut":
            content = content[:place]
        elif kind == "put":
            content = content[:place] + material + content[place:]
        elif kind == "double":
            content = content[:place] + content[max(0, place - 64) :]
        else:
            content = content[:place] + bytes(len(material)) + content[place + len(material) :]
    return content
