"""Pairs of single answers: worked out by hand, and properties that hold for any answers."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cdpo_lightning.data.audit.answer_pairs import pair_answers
from cdpo_lightning.data.records import LabelledAnswer, PreferencePair


def answers(*texts, prompt="p"):
    """Return labelled answers; those in lower case are safe."""
    return [LabelledAnswer(prompt, text, text.islower()) for text in texts]


def test_safe_and_unsafe_answers_alternate():
    """The order is a B c D: three pairs, each with one safe answer."""
    assert pair_answers(answers("a", "c", "B", "D")) == [
        PreferencePair("p", "a", "B", safer=0, safe_0=True, safe_1=False),
        PreferencePair("p", "B", "c", safer=1, safe_0=False, safe_1=True),
        PreferencePair("p", "c", "D", safer=0, safe_0=True, safe_1=False),
    ]


def test_two_answers_with_equal_safety_have_no_safer_one():
    assert pair_answers(answers("A", "B")) == [PreferencePair("p", "A", "B", safe_0=False, safe_1=False)]


def test_a_single_answer_is_in_no_pair():
    assert pair_answers(answers("a") + answers("b", prompt="q")) == []


@given(st.lists(st.tuples(st.sampled_from("pq"), st.text("abcABC", min_size=1, max_size=2)), unique=True))
def test_every_answer_except_a_single_one_is_in_a_pair_with_its_label(rows):
    every_answer = [answer for prompt, text in rows for answer in answers(text, prompt=prompt)]
    count = Counter(answer.prompt for answer in every_answer)
    pairs = pair_answers(every_answer)
    assert len(pairs) == sum(n - 1 for n in count.values())
    seen = {(p.prompt, text, safe) for p in pairs for text, safe in zip(p.responses, p.safe, strict=True)}
    assert seen == {(a.prompt, a.response, a.safe) for a in every_answer if count[a.prompt] > 1}
    assert all(p.response_0 != p.response_1 and (p.safer is None) == (p.safe_0 == p.safe_1) for p in pairs)
    assert all(p.safer is None or p.safe[p.safer] for p in pairs)
