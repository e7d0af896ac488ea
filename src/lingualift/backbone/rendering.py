"""The process that renders chat templates, which are programs of other people's; run as a script by `chat`.

It reads one JSON value a line: first the bounds, then what transformers' function is given for each rendering. It
answers to each with one line, `{"text": …}` or `{"error": …}`. One that takes longer ends the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import sys
from typing import Any

try:
    import resource
except ImportError:  # Windows, which has no bound on memory
    resource = None  # type: ignore[assignment]


def _answer(given: dict[str, Any], bounds: dict[str, int]) -> dict[str, str]:
    from transformers.utils.chat_template_utils import render_jinja_template

    faulthandler.dump_traceback_later(bounds["seconds"], exit=True)  # whatever Python is at
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
        faulthandler.cancel_dump_traceback_later()


def main() -> None:
    """Answer until there is nothing more to read."""
    bounds = json.loads(sys.stdin.readline())
    if resource is not None:
        with contextlib.suppress(
            ValueError, OSError
        ):  # a lower bound holds already, or the system knows none
            resource.setrlimit(resource.RLIMIT_AS, (bounds["bytes"], bounds["bytes"]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), bounds)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
