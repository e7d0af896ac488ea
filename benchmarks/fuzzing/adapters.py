"""Adapter folders from somewhere else."""

from __future__ import annotations

import ast
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzzing.ground import (
    ADAPTERS,
    CONFIG,
    GROUND,
    PAYLOAD,
    PLAIN,
    PROVENANCE,
    SCORE,
    WEIGHTS,
    copied,
    deserialized,
    known,
    pickled,
    read_json,
)
from fuzzing.trial import EITHER, OK, REFUSED, Trial
from fuzzing.values import CANARY, CODE, HOSTILE_PATTERNS, PATTERNS, WORDS, damaged, odd, spoiled

_COMMANDS = (*("inspect",) * 2, "inspect --json", *("merge",) * 2, "evaluate", "predict", "train", "lift")


def uses(draw: random.Random, *commands: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A command that reads the adapter `a`, and what it may leave when it refuses."""
    command = draw.choice(commands or _COMMANDS)
    if command.startswith("inspect"):
        more = (f"{GROUND}/target",) if draw.random() < 0.3 else ()
        return (*command.split(), "a", *more), ()
    if command == "merge":
        roles = [f"{GROUND}/{name}" for name in ADAPTERS]
        roles[draw.choice((0, 0, 1, 2))] = "a"
        task, source, target = roles
        space = ("--space", "delta") if draw.random() < 0.4 else ()
        named = ("--task", task, "--source-reference", source, "--target-reference", target)
        return ("merge", *named, *space, "--output", "out"), ()
    if command == "train":
        learn = ("--data", f"{GROUND}/rows.jsonl", "--steps", "1", "--start", "a", "--output", "out")
        return ("train", *SCORE, *learn), ()
    if command == "lift":
        texts = [f"{GROUND}/data/reference/{code}/train.jsonl" for code in ("fr", "en")]
        read = ("--text", texts[0], "--source-text", texts[1], "--steps", "1", "--workers", "1", "--to", "fr")
        made = ("lift", "--backbone", "miniworld", "--adapter", "a", *read, "--output", "out")
        return made, ("lingualift-store*",)
    if command == "predict":
        rows = f"{GROUND}/rows.jsonl"
        return ("predict", *SCORE, "--adapter", "a", "--input", rows, "--output", "out.jsonl"), ()
    data = ("--data", f"{GROUND}/rows.jsonl", "--split", "train", "--output", "out.json")
    return ("evaluate", *SCORE, "--adapter", "a", *data), ()


_PATTERN_KEYS = (
    *("target_modules", "exclude_modules", "modules_to_save"),
    *("rank_pattern", "alpha_pattern", "layers_pattern"),
)
# fmt: off
SETTINGS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("peft_type", ("IA3", "LOHA", "OFT", "VERA", "PREFIX_TUNING", "FLARE", "X-MIXUP", "lora", "", None, 1,
     ["LORA"])),
    ("task_type", ("SEQ_CLS", "\x1b[2J", None, 5, "nope", "TOKEN_CLS")),
    ("base_model_name_or_path", (CODE, *WORDS, "org/model", None, 5, ["a"])),
    ("revision", ('main"); open("' + CANARY + '", "w"); ("', *WORDS, 5)),
    ("target_modules", (*PATTERNS, "all-linear", [], None, 5, ["("], [5],
     {"q_proj": 1})),
    ("exclude_modules", (*PATTERNS, [5], 5)),
    ("modules_to_save", (["lm_head"], ["("], "lm_head", [5], 5, ["nope"], {"a": 1})),
    ("rank_pattern", ({"(": 4}, {"q_proj": 0}, {"q_proj": 10**12}, [],
     {"q_proj": "4"}, 5)),
    ("alpha_pattern", ({"(": 4}, {"q_proj": 10**400}, {"": 1}, "x",
     {"q_proj": None})),
    ("layers_to_transform", ([0], 0, [10**9], "0", [None], -1, {}, [[0]])),
    ("layers_pattern", ("(", ["("], 5, "layers", [None])),
    ("r", (10**12, 0, -1, "2", 2.0, None, True, 10**400, [2])),
    ("lora_alpha", (10**400, 0, "4", None, True, float("nan"), 1e308)),
    ("lora_dropout", (float("nan"), 2, -1, "x", None)),
    ("init_lora_weights", ("pissa", "pissa_niter_4", "olora", "loftq", "corda", "eva", "nope", 5, None, [],
     "orthogonal")),
    ("use_dora", (True, "yes", 5, None)),
    ("use_rslora", (True, "no", 5)),
    ("lora_bias", (True, "x")),
    ("bias", ("all", "lora_only", "nope", 5, None)),
    ("fan_in_fan_out", (True, "x")),
    ("layer_replication", ([[0, 1], [0, 2]], [[0, 10**9]], [[0]], "x", 5, [[-1, 1]])),
    ("trainable_token_indices", ([0, 1], [10**9], {"embed_tokens": [0]}, "x", 5)),
    ("loftq_config", ({"loftq_bits": 4}, "x", 5)),
    ("eva_config", ({"rho": 2.0}, "x")),
    ("corda_config", ({"cache_file": f"{CANARY}"}, "x")),
    ("runtime_config", ({"ephemeral_gpu_offload": True}, "x", 5)),
    ("auto_mapping", ({"base_model_class": "os", "parent_library": "payload"}, "x", 5)),
    ("auto_map", ({"AutoModelForCausalLM": "payload.Evil"},)),
    ("arrow_config", ({}, "x")),
    ("qalora_group_size", (0, "x")),
    ("inference_mode", ("x", 5, None)),
    ("peft_version", ("\ud83d", 5, "999")),
    ("nobody_knows_this", (1, {"a": []}, "\x1b[2J")),
)
# fmt: on
"""Keys of adapter_config.json, and values of them; among them all that peft acts on."""


def _never_ending(draw: random.Random) -> tuple[str, Any]:
    """A setting with a pattern that is tried for ever."""
    pattern, key = draw.choice(HOSTILE_PATTERNS), draw.choice(_PATTERN_KEYS)
    if key.endswith("s_pattern") or key == "modules_to_save":
        return key, [pattern]
    return key, {pattern: 4} if key.endswith("_pattern") else pattern


def configs(draw: random.Random, here: Path) -> Trial:
    """`adapter_config.json` of adapters from somewhere."""
    source = draw.choice((*ADAPTERS, "ia3", "merged", "merged"))
    how = draw.random()
    folder = copied(here, source, "a")
    path = folder / CONFIG
    given = path.read_bytes()
    right, then = EITHER, ()
    if how < 0.01:
        return Trial(
            "as it is", uses(draw, "inspect", *(("evaluate", "predict") if source == "task" else ()))[0], OK
        )
    if how < 0.04 and source != "ia3":
        return _megatron(draw, here, folder)
    if how < 0.5:
        what, choices = draw.choice(SETTINGS)
        value = draw.choice(choices)
        if draw.random() < 0.01:
            what, value = _never_ending(draw)
        content = json.dumps({**read_json(path), what: value}).encode()
    else:
        what = "JSON"
        content = spoiled(draw, read_json(path))
        right = known(lambda: json.loads(content.decode("utf-8-sig")))
    path.write_bytes(content)
    if draw.random() < 0.8:
        (folder / PROVENANCE).unlink()  # so that it is somebody else's
    elif source == "merged" and content != given:  # which alone records the hash of its configuration
        right = REFUSED
    for name in ("payload.py", "modeling.py"):
        (folder / name).write_text(PAYLOAD, encoding="utf-8")
    arguments, leaves = uses(draw)
    if arguments[0] in ("evaluate", "predict", "train") and draw.random() < 0.3:
        then = PLAIN
    return Trial(what, arguments, right, leaves, then=then, check=_said(here))


def _megatron(draw: random.Random, here: Path, folder: Path) -> Trial:
    """A configuration that makes peft import a module of the adapter's folder."""
    named = folder.rename(here / "megatron")
    module = draw.choice(("megatron.payload", "payload"))
    content = {**read_json(named / CONFIG), "megatron_config": {"a": 1}, "megatron_core": module}
    (named / CONFIG).write_text(json.dumps(content), encoding="utf-8")
    (named / PROVENANCE).unlink()
    (named / "payload.py").write_text(PAYLOAD, encoding="utf-8")
    (here / "payload.py").write_text(PAYLOAD, encoding="utf-8")
    arguments, leaves = uses(draw, "evaluate", "predict", "train", "lift")
    return Trial(
        "megatron", tuple("megatron" if word == "a" else word for word in arguments), REFUSED, leaves
    )


def _said(here: Path) -> Callable[[str], tuple[str, str] | None]:
    """Look at the card of an adapter that was written: its code is ours, and it holds no HTML."""

    def check(out: str) -> tuple[str, str] | None:
        card = here / "out" / "README.md"
        if not card.is_file():
            return None
        text = card.read_text(encoding="utf-8")
        for block in re.findall(r"```python\n(.*?)\n```", text, re.S):
            try:
                called = [node.func for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
            except SyntaxError:
                return "executed", "a card's code is no Python"
            if any(isinstance(one, ast.Name) and one.id == "open" for one in called):
                return "executed", "words became code of a card"
        outside = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)
        return ("executed", "HTML in a card") if re.search("<img|<script", outside) else None

    return check


def headers(draw: random.Random, here: Path) -> Trial:
    """Headers of `adapter_model.safetensors`, against the reference reader."""
    folder = copied(here, draw.choice((*ADAPTERS, "ia3")), "a")
    (folder / PROVENANCE).unlink()
    path = folder / WEIGHTS
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    how = draw.random()
    if how < 0.002:
        content, what = _many_names(draw), "many names"
    elif how < 0.2:
        content, what = damaged(draw, content[: 8 + length]) + data, "bytes of the header"
    else:
        text, what = _HEADERS[draw.randrange(len(_HEADERS))](draw, header, len(data))
        sizes = (0, 1, len(text) - 1, len(text) + 1, 2**63, 10**8 + 1)
        size = len(text) if draw.random() < 0.95 else draw.choice(sizes)
        content = size.to_bytes(8, "little") + text + data
    path.write_bytes(content)
    arguments, leaves = uses(draw, *("inspect",) * 5, "merge", "merge", "evaluate", "predict")
    return Trial(what, arguments, known(lambda: deserialized(content)), leaves)


def _spoiled_header(draw: random.Random, header: Any, size: int) -> tuple[bytes, str]:
    return spoiled(draw, header), "JSON of the header"


def _entry_changed(draw: random.Random, header: Any, size: int) -> tuple[bytes, str]:
    name = draw.choice([name for name in header if name != "__metadata__"])
    key = draw.choice(("dtype", "shape", "data_offsets"))
    numbers = (
        "1e30",
        "1e0",
        "2.0",
        "-0",
        "-1",
        "00",
        "1" * 25,
        "9" * 4000,
        "true",
        "null",
        '"1"',
        f"{2**64}",
    )
    if key == "dtype":
        codes = ("F8_E4M3", "F4", "f32", "", "BOOL", "I64", "F64", "C64", "U16", "F16")
        value = json.dumps(draw.choice(codes))
    else:
        value = "[" + ", ".join([draw.choice(numbers), *map(str, header[name][key][1:])]) + "]"
    text = json.dumps(header).replace(json.dumps(header[name]), json.dumps({**header[name], key: "@"}))
    return text.replace('"@"', value).encode(), f"{key} of the header"


def _word_in_header(draw: random.Random, header: Any, size: int) -> tuple[bytes, str]:
    """Words in names, in metadata, and of tensors that hold nothing."""
    words = ("\\ud83d", "\\ude00\\ud83d", "\\x41", "\\u12", "\\/", "\\u0000", "\\e", "a\\", "\n", "\x7f", "é")
    word = draw.choice(words)
    end = {"dtype": "F32", "shape": [0], "data_offsets": [size, size]}
    changes: list[Any] = [{"@": end}, {"__metadata__": {"@": "a"}}, {"__metadata__": {"format": "@"}}]
    changes += [{"__metadata__": {"a": 5}}, {"__metadata__": None}, {"a.bias": {**end, "shape": [0, 10**30]}}]
    changes += [{"a.bias": {**end, "shape": [2**33, 2**33, 0]}}, {"a.bias": {**end, "more": 1}}]
    text = json.dumps({**header, **draw.choice(changes)}, ensure_ascii=False)
    return text.replace('"@"', f'"{word}"').encode("utf-8", "surrogatepass"), "words of the header"


def _framed(draw: random.Random, header: Any, size: int) -> tuple[bytes, str]:
    """White space, and other things, around the header."""
    text = json.dumps(header).encode()
    frames = (
        (b"", b" " * 9),
        (b" ", b""),
        (b"", b"\n"),
        (b"\xef\xbb\xbf", b""),
        (b"", b"\0\0"),
        (b"", b"{}"),
    )
    before, after = draw.choice(frames)
    name = draw.choice(list(header))
    twice = text[:-1] + b"," + json.dumps({name: header[name]}).encode()[1:]
    return draw.choice((before + text + after, before + text + after, twice)), "around the header"


_HEADERS = (_spoiled_header, _spoiled_header, _entry_changed, _entry_changed, _word_in_header, _framed)


def _many_names(draw: random.Random) -> bytes:
    names = [f'"n{number}":0' for number in range(120_000)]
    if draw.random() < 0.5:
        names.append('"n119999":0')
    text = ("{" + ",".join(names) + "}").encode()
    return len(text).to_bytes(8, "little") + text


def tensors(draw: random.Random, here: Path) -> Trial:
    """Numbers of an adapter that records its hash, and files in its folder that are others."""
    folder = copied(here, draw.choice(("task", "merged", "ia3")), "a")
    path = folder / WEIGHTS
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    how, right = draw.random(), REFUSED
    if how < 0.6:
        what = "bits"
        for _ in range(draw.choice((1, 200))):
            content[draw.randrange(8 + length, len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    elif how < 0.75:
        what, right = "NaN", REFUSED
        at = 8 + length + 4 * draw.randrange((len(content) - 8 - length) // 4)
        content[at : at + 4] = b"\xff\xff\xff\x7f"
        path.write_bytes(content)
        if draw.random() < 0.5:
            (folder / PROVENANCE).unlink()
    elif how < 0.85:
        what = "a pickle"
        path.unlink()
        (folder / "adapter_model.bin").write_bytes(pickled())
    else:
        what = draw.choice((WEIGHTS, CONFIG))
        given = (folder / what).read_bytes()
        (folder / what).write_bytes(damaged(draw, given))
        recorded = what.removeprefix("adapter_").split(".")[0].replace("model", "weights") + "_sha256"
        same = (folder / what).read_bytes() == given or recorded not in read_json(folder / PROVENANCE)
        right = EITHER if same else REFUSED
    arguments, leaves = uses(draw)
    return Trial(what, arguments, right, leaves)


def notes(draw: random.Random, here: Path) -> Trial:
    """`provenance.json` of an adapter."""
    folder = copied(here, draw.choice((*ADAPTERS, "ia3")), "a")
    path = folder / PROVENANCE
    given = read_json(path)
    if draw.random() < 0.5:
        key = draw.choice((*given, "labels", "beside_language", "chat_template", "languages", "backbone"))
        content = (
            spoiled(draw, {key: given.get(key), **given}) if draw.random() < 0.5 else _with(draw, given, key)
        )
    else:
        content = spoiled(draw, given)
    path.write_bytes(content)
    arguments, leaves = uses(draw)
    return Trial("JSON", arguments, known(lambda: json.loads(content.decode())), leaves, check=_said(here))


def _with(draw: random.Random, given: dict[str, Any], key: str) -> bytes:
    return json.dumps({**given, key: odd(draw)}).encode()
