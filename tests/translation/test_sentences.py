"""Where texts are cut: nothing is lost, nothing is too long, answers stay whole."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lingualift.translation.sentences import joined, pieces, sentences


def cut(text):
    return [text[begin:end] for begin, end in sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("He said: “Go.” She went.", ["He said: “Go.”", "She went."]),
        ("Dr. Smith met J. R. Brown in the U.S. Army.", ["Dr. Smith met J. R. Brown in the U.S. Army."]),
        ("It costs 3.50 in e.g. Kenya.", ["It costs 3.50 in e.g. Kenya."]),
        ("It rose to 3. Then it fell.", ["It rose to 3.", "Then it fell."]),
        ("It was so.[5][12] Then “no.”", ["It was so.[5][12]", "Then “no.”"]),
        ("“Why?” he asked.", ["“Why?” he asked."]),
        ("A title\n\nA text. Its end", ["A title", "A text.", "Its end"]),
        ("你好。他说：“走。”然后走了", ["你好。", "他说：“走。”", "然后走了"]),
        ("यह एक है। वह दो है।", ["यह एक है।", "वह दो है।"]),
        ("ما هذا؟ هذا بيت.", ["ما هذا؟", "هذا بيت."]),
        ("ይህ ቤት ነው። ያ ዛፍ ነው።", ["ይህ ቤት ነው።", "ያ ዛፍ ነው።"]),
        ("สวัสดี นี่คือบ้าน", ["สวัสดี นี่คือบ้าน"]),
        ("…", ["…"]),
    ],
)
def test_sentences_end_where_readers_of_the_script_end_them(text, expected):
    assert cut(text) == expected


TEXTS = st.text("ab A.!?。”\n 1é", min_size=1).map(str.strip).filter(bool)


@example("111  1", 5)  # fits once its spaces are one
@given(TEXTS, st.integers(1, 12))
def test_pieces_lose_no_letter_and_each_fits(text, limit):
    found = pieces(text, lambda part: len(part) <= limit)
    assert "".join("".join(piece.text.split()) for piece in found) == "".join(text.split())
    assert all(0 < len(piece.text) <= limit for piece in found)
    longest = max(len(" ".join(text[begin:end].split())) for begin, end in sentences(text))
    assert any(piece.cut for piece in found) == (longest > limit)


@given(TEXTS)
def test_what_is_not_translated_comes_back_as_it_was_but_for_spaces(text):
    found = pieces(text, lambda part: True)
    back = joined(found, [piece.text for piece in found], "Latn")
    assert [line.split() for line in back.replace(" ", "").splitlines()] == [
        line.split() for line in text.replace(" ", "").splitlines()
    ]


@given(TEXTS, st.data())
def test_an_answer_stays_in_one_piece_between_its_marks(text, data):
    begin = data.draw(st.integers(0, len(text) - 1).filter(lambda place: not text[place].isspace()))
    end = data.draw(st.integers(begin + 1, len(text)).filter(lambda place: not text[place - 1].isspace()))
    found = pieces(text, lambda part: True, (begin, end), ("[", "]"))
    (marked,) = [piece.text for piece in found if "[" in piece.text]
    assert marked[marked.index("[") + 1 : marked.index("]")] == text[begin:end]
    rest = [piece.text for piece in found if piece.text != marked]
    assert all(one in text for one in rest)
    assert "".join("".join(piece.text.split()) for piece in found).replace("[", "").replace(
        "]", ""
    ) == "".join(text.split())


def test_scripts_without_spaces_are_joined_without():
    found = pieces("One. Two.\nThree.", lambda part: True)
    assert joined(found, ["一。", "二。", "三。"], "Hans").strip() == "一。二。\n三。"
    assert joined(found, ["Moja.", "Mbili.", "Tatu."], "Latn").strip() == "Moja. Mbili.\nTatu."
