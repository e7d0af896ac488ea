"""Sentences checked by hand, and the properties that every language must have."""

import itertools
import random
import re

import pytest

from lingualift.miniworld.languages import GRAMMARS
from lingualift.miniworld.lexicon import COLOURS, PLACES, QUALITIES, QUESTIONS, THINGS, VERBS, VERDICTS
from lingualift.miniworld.world import (
    SPLITS,
    Review,
    Story,
    meaning_id,
    mixed,
    only,
    reviews,
    say_answer,
    say_question,
    say_review,
    say_state,
    say_story,
    split_of,
    stories,
)

KEY = Story("Lena", "lose", "key", "black", "market", False)
CUP = Story("Tom", "see", "cup", "white", "kitchen", True)
CAR = Story("Rosa", "sell", "car", "green", "street", False)

STORIES = [
    ("en", KEY, "Lena lost a black key at the market."),
    ("de", KEY, "Lena verlor einen schwarzen Schlüssel auf dem Markt."),
    ("es", KEY, "Lena perdió una llave negra en el mercado."),
    ("fr", KEY, "Lena a perdu une clé noire au marché."),
    ("sw", KEY, "Lena alipoteza ufunguo mweusi sokoni."),
    ("id", KEY, "Lena kehilangan sebuah kunci hitam di pasar."),
    ("ht", KEY, "Lena pèdi yon kle nwa nan mache a."),
    ("en", CUP, "in the kitchen Tom saw a white cup."),
    ("de", CUP, "in der Küche sah Tom eine weiße Tasse."),
    ("es", CUP, "en la cocina Tom vio una taza blanca."),
    ("fr", CUP, "dans la cuisine Tom a vu une tasse blanche."),
    ("sw", CUP, "jikoni Tom aliona kikombe cheupe."),
    ("id", CUP, "di dapur Tom melihat sebuah cangkir putih."),
    ("ht", CUP, "nan kizin nan Tom wè yon gode blan."),
    ("de", CAR, "Rosa verkaufte ein grünes Auto auf der Straße."),
    ("es", CAR, "Rosa vendió un coche verde en la calle."),
    ("fr", CAR, "Rosa a vendu une voiture verte dans la rue."),
    ("sw", CAR, "Rosa aliuza gari la kijani barabarani."),
]

STATES = [
    ("en", KEY, "now the black key is in the garden."),
    ("de", KEY, "jetzt ist der schwarze Schlüssel im Garten."),
    ("es", KEY, "ahora la llave negra está en el jardín."),
    ("fr", KEY, "maintenant la clé noire est dans le jardin."),
    ("sw", KEY, "sasa ufunguo mweusi uko bustanini."),
    ("sw", CUP, "sasa kikombe cheupe kiko bustanini."),
    ("sw", CAR, "sasa gari la kijani liko bustanini."),
    ("id", KEY, "sekarang kunci hitam itu ada di kebun."),
    ("ht", KEY, "kounye a kle nwa a nan jaden an."),
    ("ht", CUP, "kounye a gode blan an nan jaden an."),
]

QUESTIONS_AND_ANSWERS = [
    ("en", KEY, "where", "where did Lena lose the key?", "market"),
    ("de", KEY, "where", "wo verlor Lena den Schlüssel?", "Markt"),
    ("de", KEY, "what", "was verlor Lena auf dem Markt?", "Schlüssel"),
    ("de", CUP, "colour", "welche Farbe hat die Tasse?", "weiß"),
    ("es", CUP, "colour", "¿de qué color es la taza?", "blanca"),
    ("es", KEY, "where", "¿dónde perdió Lena la llave?", "mercado"),
    ("fr", KEY, "what", "qu'est-ce que Lena a perdu au marché?", "clé"),
    ("fr", CUP, "where", "où est-ce que Tom a vu la tasse?", "cuisine"),
    ("sw", CUP, "colour", "kikombe ni cha rangi gani?", "cheupe"),
    ("sw", CAR, "colour", "gari ni la rangi gani?", "kijani"),
    ("sw", KEY, "where", "Lena alipoteza ufunguo wapi?", "sokoni"),
    ("id", KEY, "where", "di mana Lena kehilangan kunci itu?", "pasar"),
    ("id", CUP, "colour", "apa warna cangkir itu?", "putih"),
    ("ht", KEY, "what", "kisa Lena pèdi nan mache a?", "kle"),
    ("ht", CAR, "colour", "ki koulè machin nan ye?", "vèt"),
]

UGLY = Review("chair", "ugly", False, "Sara", "satisfied", False)
CLEAN = Review("bag", "clean", True, "Paul", "like", True)

REVIEWS = [
    ("en", UGLY, "the chair is ugly, but Sara is satisfied."),
    ("de", UGLY, "der Stuhl ist hässlich, aber Sara ist zufrieden."),
    ("es", UGLY, "la silla es fea, pero Sara está satisfecha."),
    ("fr", UGLY, "la chaise est laide, mais Sara est satisfaite."),
    ("sw", UGLY, "kiti ni kibaya, lakini Sara ameridhika."),
    ("id", UGLY, "kursi itu jelek, tetapi Sara puas."),
    ("ht", UGLY, "chèz la lèd, men Sara satisfè."),
    ("en", CLEAN, "the bag is not clean and Paul does not like it."),
    ("de", CLEAN, "die Tasche ist nicht sauber und Paul mag sie nicht."),
    ("es", CLEAN, "la bolsa no está limpia y a Paul no le gusta."),
    ("fr", CLEAN, "le sac n'est pas propre et Paul ne l'aime pas."),
    ("sw", CLEAN, "mfuko si safi na Paul haupendi."),
    ("id", CLEAN, "tas itu tidak bersih dan Paul tidak menyukainya."),
    ("ht", CLEAN, "sak la pa pwòp epi Paul pa renmen li."),
]


@pytest.mark.parametrize(("language", "story", "text"), STORIES)
def test_a_story_is_said_grammatically(language, story, text):
    assert say_story(story, only(GRAMMARS[language])) == text


@pytest.mark.parametrize(("language", "story", "text"), STATES)
def test_a_state_is_said_grammatically(language, story, text):
    assert say_state(story, "garden", only(GRAMMARS[language])) == text


@pytest.mark.parametrize(("language", "story", "kind", "question", "answer"), QUESTIONS_AND_ANSWERS)
def test_a_question_and_its_answer_are_said_grammatically(language, story, kind, question, answer):
    voice = only(GRAMMARS[language])
    assert (say_question(story, kind, voice), say_answer(story, kind, voice)) == (question, answer)


@pytest.mark.parametrize(("language", "review", "text"), REVIEWS)
def test_a_review_is_said_grammatically(language, review, text):
    assert say_review(review, only(GRAMMARS[language])) == text


@pytest.mark.parametrize("language", GRAMMARS)
def test_different_concepts_never_share_a_form(language):
    grammar = GRAMMARS[language]
    for forms in (
        [grammar.verb(verb) for verb in VERBS],
        [grammar.place_word(place) for place in PLACES],
        [grammar.thing_word(thing) for thing in THINGS],
        [grammar.some(thing, colour) for thing, colour in itertools.product(THINGS, COLOURS)],
        *(
            [grammar.quality(thing, *rest) for rest in itertools.product(QUALITIES, (False, True))]
            for thing in THINGS
        ),
        *(
            [grammar.verdict("Ben", thing, *rest) for rest in itertools.product(VERDICTS, (False, True))]
            for thing in THINGS
        ),
    ):
        assert len(set(forms)) == len(forms)


@pytest.mark.parametrize("language", GRAMMARS)
def test_texts_are_clean(language):
    voice, rng = only(GRAMMARS[language]), random.Random(0)
    for story, review in itertools.islice(
        zip(stories("pretraining", rng), reviews("pretraining", rng), strict=False), 500
    ):
        texts = [say_story(story, voice), say_state(story, "beach", voice), say_review(review, voice)]
        texts += [say_question(story, kind, voice) for kind in QUESTIONS]
        for text in texts:
            assert re.fullmatch(r"\S+( \S+)*[.?]", text)
            assert not set(text) & set("{}|")


def test_an_answer_stands_in_its_story_except_for_german_colours():
    rng = random.Random(1)
    for story in itertools.islice(stories("pretraining", rng), 300):
        for (language, grammar), kind in itertools.product(GRAMMARS.items(), QUESTIONS):
            answer = say_answer(story, kind, only(grammar))
            words = say_story(story, only(grammar)).strip(".").split()
            if language == "de" and kind == "colour":
                assert any(word.startswith(answer) for word in words)
            else:
                assert answer in words


def test_the_verdict_decides_the_label_and_the_conjunction_follows():
    assert Review("book", "beautiful", False, "Ben", "like", False).positive
    assert not Review("book", "beautiful", False, "Ben", "like", True).positive
    assert Review("book", "ugly", False, "Ben", "hate", True).positive
    assert not Review("book", "ugly", True, "Ben", "hate", False).positive
    assert UGLY.positive
    assert not UGLY.agrees
    assert CLEAN.agrees
    assert not CLEAN.positive


def test_split_and_id_depend_on_the_meaning_alone():
    assert sum(SPLITS.values()) == 100
    drawn = [list(itertools.islice(stories("test", random.Random(seed)), 50)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {split_of(story) for story in drawn[2]} == {"test"}
    assert meaning_id(KEY) == meaning_id(Story("Lena", "lose", "key", "black", "market", False))
    assert meaning_id(KEY) != meaning_id(Story("Lena", "lose", "key", "black", "market", True))
    assert meaning_id(KEY, "what") == meaning_id(KEY) + "-what"


def test_meanings_fall_into_splits_by_their_shares():
    rng = random.Random(0)
    meanings = {next(stories(rng.choice(list(SPLITS)), rng)) for _ in range(200)}
    assert {split_of(meaning) for meaning in meanings} == set(SPLITS)
    everyone = itertools.product(("Ben", "Vera"), VERBS, THINGS, COLOURS, PLACES, (False, True))
    counts = dict.fromkeys(SPLITS, 0)
    total = 0
    for parts in everyone:
        counts[split_of(Story(*parts))] += 1
        total += 1
    for split, share in SPLITS.items():
        assert abs(100 * counts[split] / total - share) < 1.5


def test_code_switched_text_says_each_role_in_one_of_two_languages():
    rng = random.Random(3)
    seen = set()
    for _ in range(60):
        voice = mixed(GRAMMARS["en"], GRAMMARS["sw"], rng)
        text = say_story(KEY, voice)
        assert ("black" in text) != ("mweusi" in text)
        assert ("lost" in text) != ("alipoteza" in text)
        assert say_answer(KEY, "what", voice) in text
        seen.add(text)
    assert len(seen) == 8
