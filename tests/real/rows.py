"""A few rows of NusaX in three languages: those that ship, as often as they are wanted, each with an id of its own."""

import json

from lingualift.tasks import shipped_rows

LANGUAGES = {"eng": "en", "ind": "id", "jav": "jv"}
COUNTS = {"train": 24, "validation": 8, "test": 12}


def write_rows(folder):
    for code, shipped in LANGUAGES.items():
        found = shipped_rows("nusax", shipped)
        for split, count in COUNTS.items():
            path = folder / code / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            lines = [json.dumps({**found[i % len(found)], "id": f"{split}-{i}"}) for i in range(count)]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def experiment(backbone, rows, methods, steps, **changes):
    """English to Javanese in very few steps, with the aligned rows as exact translations."""
    files = f"{rows}/{{language}}/{{split}}.jsonl"
    training = {"steps": steps, "batch_size": 2 * steps, "max_length": 64}
    return {
        "backbone": {"name": str(backbone)},
        "languages": {"source": "eng", "targets": ["jav"]},
        "tasks": [
            {
                "task": "nusax",
                "data": {"files": files},
                "translated": {
                    "into_targets": {"files": files},
                    "into_source": {"files": f"{rows}/eng/{{split}}.jsonl"},
                },
            }
        ],
        "reference": {"data": {"files": f"{rows}/{{language}}/train.jsonl"}, "segment_tokens": 32},
        "training": {"task": training, "reference": training},
        "methods": methods,
        "workers": 1,
        **changes,
    }
