"""The helper by which tests hold refusals fails where another one comes."""

import pytest

from builders.refusals import refused
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


def test_another_error_and_none_fail():
    with pytest.raises(ValueError, match="x"), refused("e.yaml"):
        raise ValueError("x")
    with pytest.raises(pytest.fail.Exception), refused("e.yaml"):
        pass
