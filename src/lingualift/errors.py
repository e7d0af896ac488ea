"""The one error that a user is meant to see."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Callable, Collection, Iterable
from typing import Literal

_MARK = "\x00"
_SETTING = re.compile("\x00(?:(?P<command>\\w+):)?(?P<name>\\w+)(?:=(?P<value>[^\x00]*))?\x00")
_OPTIONS = {
    "adapters": "adapter",
    "module_weights": "module-weight",
    "layer_weights": "layer-weight",
    "source_language": "from",
    "segment_tokens": "max-length",
    "splits": "split",
}
"""Options that are not called as their argument is."""
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """Text as it may be shown: what controls a terminal, turns text around or is half a character, spelt as in JSON."""
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def one_line(text: str) -> str:
    """Text as it may be shown within a line: `plain`, and no line of its own."""
    return plain(text.replace("\n", "\\n"))


def setting(name: str, value: object = None) -> str:
    """A setting in a message, to be shown as its reader sets it: `space="delta"` in Python, `--space delta` else.

    Args:
        name: The argument's name in Python.
        value: What to set it to, where the message says so.
    """
    return f"{_MARK}{name}{'' if value is None else f'={value}'}{_MARK}"


def in_python(text: str) -> str:
    """A message for a caller from Python."""

    def shown(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        if value is not None:
            name = f"{name}={value}" if re.fullmatch(r"[-+.\d]+|True|False", value) else f'{name}="{value}"'
        return name if match["command"] is None else f"lingualift.{match['command']}({name})"

    return _SETTING.sub(shown, text)


def on_command_line(text: str) -> str:
    """A message for a user of the command line."""

    def shown(match: re.Match[str]) -> str:
        option = f"--{_OPTIONS.get(match['name'], match['name']).replace('_', '-')}"
        option = option if match["value"] is None else f"{option} {match['value']}"
        return option if match["command"] is None else f"lingualift {match['command']} {option}"

    return _SETTING.sub(shown, text)


class UserError(Exception):
    """Something the user can mend: the command line prints it without a traceback and exits with 2.

    Args:
        where: The file, key or option at fault, as the user wrote it.
        found: What was found there.
        expected: What would have been right.
        mend: What to do about it, in the imperative.

    Every part is one line of text, in which `setting` names what the caller can set; `str(error)` is the whole message,
    `plain`, for a caller from Python.
    """

    def __init__(self, where: object, found: str, expected: str = "", mend: str = "") -> None:
        self._written = (str(where), found, expected, mend)
        self.where, self.found, self.expected, self.mend = map(in_python, self._written)
        super().__init__(self._message(in_python))

    def _message(self, shown: Callable[[str], str]) -> str:
        where, found, expected, mend = map(shown, self._written)
        message = f"{where}: {found}; expected {expected}" if expected else f"{where}: {found}"
        return plain(f"{message}\n  mend: {mend}" if mend else message)

    def on_command_line(self) -> str:
        """The whole message, for a user of the command line."""
        return self._message(on_command_line)

    def within(self, settable: Collection[str], command: str) -> UserError:
        """The same error for the caller of a function that uses another one, whose settings it has only some of.

        Args:
            settable: Arguments that the caller can set.
            command: The other function, named beside its settings that the caller cannot set.
        """

        def elsewhere(match: re.Match[str]) -> str:
            own = match["name"] in settable or match["command"]
            return match[0] if own else f"{_MARK}{command}:{match[0][1:]}"

        return UserError(*(_SETTING.sub(elsewhere, part) for part in self._written))

    def located(self, more: str) -> UserError:
        """The same error, with more about where it is."""
        where, found, expected, mend = self._written
        return UserError(f"{where}{more}", found, expected, mend)

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str, str]]:
        """Survive the way back from a worker process."""
        return type(self), self._written


def did_you_mean(name: str, known: Iterable[str], then: str = "") -> str:
    """A mend for a name that is not known: the closest known ones, else all of them; and what to do `then`."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?{then and f' {then}'}"
    return (f"known: {', '.join(names)}" if names else "none is registered") + (then and f"; {then}")


_MENDS = {
    "read": {
        errno.ENOENT: "check the path",
        errno.ENOTDIR: "check the path",
        errno.ELOOP: "check the path",
        errno.EACCES: "ask for the right to read it, or name another",
        errno.EPERM: "ask for the right to read it, or name another",
        errno.EISDIR: "name a file, not a folder",
        errno.ENAMETOOLONG: "choose a shorter name",
        errno.EMFILE: "raise the limit on open files (ulimit -n)",
        errno.ENFILE: "raise the limit on open files (ulimit -n)",
    },
    "written": {
        errno.ENOSPC: "free some space or choose another output",
        errno.EDQUOT: "free some space or choose another output",
        errno.EFBIG: "raise the limit on file sizes (ulimit -f) or choose another output",
        errno.EACCES: "choose an output that you may write to",
        errno.EPERM: "choose an output that you may write to",
        errno.EROFS: "choose an output that you may write to",
        errno.ENOTDIR: "choose an output whose parents are folders",
        errno.EISDIR: "choose an output that is no folder",
        errno.EEXIST: "choose an output that does not exist yet",
        errno.ENOTEMPTY: "choose an output that does not exist yet",
        errno.ENAMETOOLONG: "choose a shorter name",
    },
    "used": {
        errno.EACCES: "change its permissions, or name another",
        errno.EPERM: "change its permissions, or name another",
        errno.EROFS: "name one on a disk that can be written",
        errno.ENOSPC: "free some space, or name another",
        errno.EDQUOT: "free some space, or name another",
        errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
        errno.ENAMETOOLONG: "choose a shorter name",
    },
}


def mend_of(done: Literal["read", "written", "used"], code: int | None) -> str | None:
    """The mend where the operating system refuses to let a file be read, written or used; None for other reasons.

    Args:
        done: What was to be done with the file; `used` where no code that is nearer expected a refusal.
        code: The system's number of the reason.
    """
    return _MENDS[done].get(code or 0)
