"""Batches: of like length, each written to the cache as soon as it is translated, the same after a stop."""

import random

import pytest

from builders.prefixing import Prefixing, foreign
from lingualift.translation.cache import Cache, Desk

SENTENCES = [f"{'word ' * (number % 9)}{number}." for number in range(30)]


class Stopped(Exception):
    pass


def at_desk(path, translator, sentences, progress=lambda done, total: None):
    with Cache(path) as cache:
        desk = Desk(translator, cache, 4, progress)
        desk.translate(sentences)
        return {text: found.text for text, found in desk.found.items()}, desk.new


def test_sentences_of_like_length_share_a_batch_and_each_is_translated_once(tmp_path):
    translator, seen = Prefixing(), []
    mixed = random.Random(0).sample(SENTENCES * 2, 60)
    found, new = at_desk(tmp_path / "a", translator, mixed, lambda *progress: seen.append(progress))
    assert found == {text: foreign(text) for text in SENTENCES}
    assert new == 30
    lengths = [len(text) for call in translator.calls for text in call]
    assert lengths == sorted(map(len, SENTENCES), reverse=True)
    assert [len(call) for call in translator.calls] == [4] * 7 + [2]
    done, totals = zip(*seen, strict=True)
    assert set(totals) == {sum(map(len, SENTENCES))} == {done[-1]}
    assert list(done) == sorted(done)


@pytest.mark.parametrize("batches", [1, 5])
def test_after_a_stop_the_batches_are_those_that_were_left(tmp_path, batches):
    whole, stopped, rest = Prefixing(), Prefixing(), Prefixing()
    at_desk(tmp_path / "whole", whole, SENTENCES)

    def stop(text):
        if len(stopped.calls) > batches:
            raise Stopped
        return text

    stopped.treat = stop
    with pytest.raises(Stopped):
        at_desk(tmp_path / "a", stopped, SENTENCES)
    found, new = at_desk(tmp_path / "a", rest, SENTENCES[::-1])
    assert stopped.calls[:-1] + rest.calls == whole.calls
    assert (new, found) == (30 - 4 * batches, {text: foreign(text) for text in SENTENCES})


def test_of_two_who_translate_one_sentence_the_first_to_write_counts(tmp_path):
    """So that one file never holds two translations of a sentence, whoever wrote it."""
    with Cache(tmp_path / "a") as other:

        def meanwhile(text):
            if not late:
                late.append(text)
                Desk(Prefixing(lambda text: f"{text} first"), other, 4, lambda *_: None).translate(["One."])
            return text

        late = []
        found, _ = at_desk(tmp_path / "a", Prefixing(meanwhile), ["One."])
    assert found == {"One.": "xOne. first"}
