"""The helpers by which tests hold refusals fail where another one comes."""

import pytest

from builders.commands import Finished
from builders.refusals import check_refusal, refused
from lingualift.errors import UserError


def refuse(where="e.yaml", found="key 'a' is 3", expected="at most 2", mend="lower it"):
    raise UserError(where, found, expected, mend)


def test_the_refusal_that_is_meant_passes():
    with refused("e.yaml", "'a'", "3", "at most 2", mend="lower") as told:
        refuse()
    assert told.value.mend == "lower it"
    with refused("e.yaml", "'a'", mend=None):
        refuse(mend="")


@pytest.mark.parametrize(
    "other", [{"where": "f.yaml"}, {"found": "key 'b' is 3"}, {"expected": "at most 9"}, {"mend": ""}]
)
def test_another_refusal_fails(other):
    with pytest.raises(AssertionError), refused("e.yaml", "'a'", "at most 2"):
        refuse(**other)
    with pytest.raises(AssertionError):
        check_refusal(ended(**other), "e.yaml", "'a'", "at most 2")


def ended(code=2, before="1 of 3\n", after="", **parts):
    """A command that was refused."""
    with pytest.raises(UserError) as told:
        refuse(**parts)
    return Finished(code, "", f"{before}lingualift: {told.value.on_command_line()}\n{after}")


def test_a_command_that_is_refused_as_meant_passes():
    check_refusal(ended(), "e.yaml", "'a'", "at most 2", mend="lower")
    usage = "Usage: lingualift run\nTry it.\n\nError: Invalid value for '--rank': 'x' is no number.\n"
    check_refusal(Finished(2, "", usage), "--rank", "'x'", mend=None)


@pytest.mark.parametrize("other", [{"code": 1}, {"before": "Traceback"}, {"after": "lingualift: b: c"}])
def test_a_command_that_ends_otherwise_fails(other):
    with pytest.raises(AssertionError):
        check_refusal(ended(**other), "e.yaml")
    with pytest.raises(AssertionError):
        check_refusal(Finished(2, "", "killed"), "e.yaml")


def test_another_error_and_none_fail():
    with pytest.raises(ValueError, match="x"), refused("e.yaml"):
        raise ValueError("x")
    with pytest.raises(pytest.fail.Exception), refused("e.yaml"):
        pass
