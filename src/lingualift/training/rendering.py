"""The process that renders chat templates, which are programs of other people's; run as a script by `chat`.

It reads one JSON value a line: first the bounds, then what transformers' function is given for each rendering. It
answers to each with one line, `{"text": …}` or `{"error": …}`. One that takes longer ends the process, by SIGALRM.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from typing import Any


def _answer(given: dict[str, Any], bounds: dict[str, int]) -> dict[str, str]:
    from transformers.utils.chat_template_utils import render_jinja_template

    signal.setitimer(signal.ITIMER_REAL, bounds["seconds"])
    try:
        (text,), _ = render_jinja_template(**given)
        text.encode()  # no half of a character
        if len(text) > bounds["characters"]:
            return {"error": f"it writes more than {bounds['characters']} characters"}
        return {"text": text}
    except MemoryError:
        return {"error": f"it asks for more than {bounds['bytes']} bytes of memory"}
    except Exception as error:
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    """Answer until there is nothing more to read."""
    bounds = json.loads(sys.stdin.readline())
    with contextlib.suppress(ValueError, OSError):  # a lower bound holds already, or the system knows none
        resource.setrlimit(resource.RLIMIT_AS, (bounds["bytes"], bounds["bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), bounds)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
