"""What comes with code: tasks, backbones and their chat templates."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuzzing.ground import (
    EXPERIMENT,
    GROUND,
    PAYLOAD,
    deserialized,
    experiment_text,
    known,
    pickled,
    read_json,
)
from fuzzing.trial import EITHER, OK, REFUSED, Trial
from fuzzing.values import CANARY, damaged, spoiled
from lingualift.miniworld import BACKBONE

_HEAD = """\
from lingualift.tasks import TASKS, Example, RowError, Task
L = {"positive": "positive", "negative": "negative"}
"""
_BODY = {
    "columns": '("id", "text")',
    "gold_column": '"label"',
    "metrics": '("accuracy",)',
    "source": '"x"',
    "example": "return Example(str(row['id']), row['text'], choices=L)",
}
# fmt: off
_ODD = (
    "None", "5", "''", "'x'", "b'x'", "()", "[]", "{}", "{1}", "(1,)", "('a', 'b')", "{'a': 1}", "float('nan')",
    "object()", "'\\ud800'",
)
# fmt: on
# fmt: off
_RAISES = (
    "raise ValueError('bad [/x] \\ud800')", "raise KeyError('x')", "assert False", "raise StopIteration",
    "raise MemoryError", "import sys; sys.exit(0)", "import sys; sys.exit(3)", "raise RowError('bad row')",
    "raise BaseException('x')", "raise RecursionError", "1 / 0", "raise OSError(2, 'x')", "raise GeneratorExit",
)
# fmt: on
# fmt: off
_MODULES = (
    "", "class T(:\n", "import nobody_has_this\n", "import sys; sys.exit(0)\n", "raise SystemExit(3)\n",
    "raise BaseException('x')\n", "raise GeneratorExit\n", "def f(): f()\nf()\n", "x = 1\0\n",
    "TASKS.register('a')(42)\n", _HEAD + "TASKS.register(None)(Task())\n",
    _HEAD + "TASKS.register('mini-sentiment')(Task())\n", _HEAD + "TASKS.register('x')(Task)\n",
    _HEAD + "TASKS.register('x')(5)\n", _HEAD + "class T(Task):\n    columns = 1 / 0\n",
)
# fmt: on
_METHODS = {
    "example": "row, language",
    "gold": "row, example",
    "parse": "text, example",
    "completion": "row, example",
    "starts": "row, example",
}
_FIELDS = ("id", "prompt", "choices", "gold", "completion", "parts", "options")
_ATTRIBUTES = ("columns", "gold_column", "metrics", "source", "max_new_tokens", "encoder_head", "labels")


def tasks(draw: random.Random, here: Path) -> Trial:
    """Tasks in Python files: what raises, what returns something else, what ends the process."""
    body, more, right = dict(_BODY), dict[str, str](), EITHER
    command = draw.choice(("evaluate", "evaluate", "predict", "plan", "train", "init"))
    generated = draw.random() < 0.35
    if generated:
        body |= {"metrics": '("exact_match",)', "example": "return Example(str(row['id']), row['text'])"}
    kind = draw.choice(("module", "raises", "returns", "returns", "field", "field", "attribute"))
    what, reads_gold = kind, command in ("evaluate", "plan", "train")
    if kind == "raises":
        name = draw.choice(tuple(_METHODS))
        how = draw.choice(_RAISES)
        what = f"{name} raises"
        _put(body, more, name, how)
        called = (name == "example" and command != "init") or (name == "gold" and reads_gold)
        called |= name == "parse" and generated and command in ("evaluate", "predict")
        right = REFUSED if called else EITHER
    elif kind == "returns":
        name = draw.choice(tuple(_METHODS))
        value = draw.choice(_ODD)
        what = f"{name} returns"
        _put(body, more, name, f"return {value}")
        wrong = name == "example" and command != "init"
        wrong |= name == "gold" and reads_gold and not (generated and value == "('a', 'b')")
        no_text = value not in ("None", "''", "'x'", "'\\ud800'")
        wrong |= name == "parse" and generated and command == "evaluate" and no_text
        right = REFUSED if wrong else EITHER
    elif kind == "field":
        field = draw.choice(_FIELDS)
        value = draw.choice((*_ODD, "'x ' * 200_000", "{'positive': ''}", "{1: 'a', 0: 'b'}"))
        given = {"id": "str(row['id'])", "prompt": "row['text']", **({} if generated else {"choices": "L"})}
        given[field] = value
        what = f"Example.{field}"
        body["example"] = f"return Example({', '.join(f'{key}={word}' for key, word in given.items())})"
    elif kind == "attribute":
        name = draw.choice(_ATTRIBUTES)
        what = name
        more_odd = ("10**30", "-3", "0", "2.5", "('nope',)", "('text',)", "('id', 'nope')")
        body[name] = draw.choice((*_ODD, *more_odd))
    text = draw.choice(_MODULES) if kind == "module" else _task_file(draw, body, more)
    right = REFUSED if kind == "module" and command != "init" else right
    content = text.encode() if draw.random() > 0.05 else damaged(draw, text.encode())
    right = right if content == text.encode() else EITHER
    (here / "t.py").write_bytes(content)
    return Trial(what, _asks(here, command), right, leaves=("__pycache__*",))


def _put(body: dict[str, str], more: dict[str, str], name: str, statement: str) -> None:
    (body if name == "example" else more)[name] = statement


def _task_file(draw: random.Random, body: Mapping[str, str], more: Mapping[str, str]) -> str:
    attributes = "".join(f"    {name} = {value}\n" for name, value in body.items() if name != "example")
    methods = "".join(
        f"    def {name}(self, {_METHODS[name]}):\n        {text}\n"
        for name, text in {"example": body["example"], **more}.items()
    )
    return f"{_HEAD}class T(Task):\n{attributes}{methods}TASKS.register('t{draw.getrandbits(48):x}')(T())\n"


def _asks(here: Path, command: str) -> tuple[str, ...]:
    asked = ("--backbone", "miniworld", "--task", "t.py", "--language", "en")
    if command == "plan":
        changes = {"tasks": [{**EXPERIMENT["tasks"][0], "task": "t.py"}], "methods": ["source-ft"]}
        (here / "e.yaml").write_text(experiment_text(changes), encoding="utf-8")
        return ("plan", "e.yaml", "--no-calibrate")
    if command == "init":
        return ("init", "--task", "t.py")
    if command == "predict":
        return ("predict", *asked, "--input", f"{GROUND}/rows.jsonl", "--output", "out.jsonl")
    if command == "train":
        learn = f"--data {GROUND}/rows.jsonl --steps 1 --rank 1 --output out"
        return ("train", *asked, *learn.split())
    return ("evaluate", *asked, "--data", f"{GROUND}/rows.jsonl", "--split", "train", "--output", "out.json")


# fmt: off
_CONFIG_VALUES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("hidden_size", ("big", 0, -8, 7, None, 10**7)),
    ("num_hidden_layers", (10**6, 0, None, -1, "2", 1)),
    ("vocab_size", (10, 10**12, None, 0)),
    ("model_type", ("nope", None, ["llama"], "bert", "t5", "evil")),
    ("architectures", (None, ["Evil"], "x", 5)),
    ("hidden_act", ("nope", None, 5)),
    ("num_attention_heads", (0, 3, None, -1)),
    ("num_key_value_heads", (0, 3)),
    ("rope_parameters", ({"rope_type": "nope"}, 5, None)),
    ("max_position_embeddings", (2, "x", -1, None)),
    ("dtype", ("nope", 7, None)),
    ("quantization_config", ({"quant_method": "nope"}, {"quant_method": "gptq", "bits": 4}, [], 5)),
    ("auto_map", ({"AutoModelForCausalLM": "payload.Evil", "AutoConfig": "payload.Evil"}, 5,
     {"AutoConfig": 5})),
    ("_attn_implementation", ("kernels-community/flash-attn", "flash_attention_2", 5)),
    ("eos_token_id", ("x", -1, [10**9])),
    ("pad_token_id", (10**9, -5, "x")),
    ("tie_word_embeddings", ("maybe", None, True, False)),
    ("rms_norm_eps", ("x", None, 0)),
    ("initializer_range", (None, "x")),
    ("attention_dropout", (5, "x")),
)
# fmt: on
# fmt: off
_TOKENIZER_VALUES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("tokenizer_class", ("Nope", None, ["x"], 5)),
    ("auto_map", ({"AutoTokenizer": ["payload.Evil", None]}, 5)),
    ("chat_template", (5, [], {"a": 1})),
    ("model_max_length", ("x", -1, None)),
    ("bos_token", (5, [], {"content": 5})),
    ("eos_token", ({"content": 5}, "\ud83d", None)),
    ("added_tokens_decoder", ({"x": 1}, [], {"0": {"content": 5}})),
    ("padding_side", ("middle", 5)),
    ("extra_special_tokens", (["x"], 5, {"a": 5})),
)
# fmt: on
_GOOD = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
# fmt: off
TEMPLATES_OF_CHAT = (
    "{{ raise_exception('no') }}", "{{ 1/0 }}", "{% for i in range(999999) %}x{% endfor %}",
    "{{ messages[9] }}", "{{ messages[9].content.x.y }}", "{{ 'x'|int + 'y' }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ 'a' * 10**9 * 20 }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{ 9**9**9 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    f"{{{{ cycler.__init__.__globals__.os.system('touch {CANARY}') }}}}", "{{ messages.append(1) }}",
    "{% include '/etc/passwd' %}", "{% import 'x' as y %}", "{% for %}", " ", "{{ nobody.a.b }}",
    "{{ strftime_now('%') }}", "{{ messages[0].content.encode('ascii') }}", "{% break %}",
    "{{ messages|tojson(indent='x') }}", "{{ '%d'|format('x') }}", "{{ '%099999999999d'|format(1) }}",
    "{{ [1, 'a']|sort }}", "{% generation %}x{% endgeneration %}", "{{ '\ud83d' }}",
    "{{ messages[0].content|center(9999999999) }}",
)
# fmt: on


_SETTINGS_FILES = ("config", "tokenizer", "tokenizer_config", "generation_config")


def backbones(draw: random.Random, here: Path) -> Trial:
    """Folders of backbones: downloads cut short, other sizes, code beside the weights."""
    folder = Path(shutil.copytree(BACKBONE, here / "b"))
    names = ("model.safetensors", *(f"{name}.json" for name in _SETTINGS_FILES))
    right, how = EITHER, draw.random()
    if how < 0.02:
        what, right = "as it is", OK
    elif how < 0.35:
        what = draw.choice(("model.safetensors", *names))
        content = damaged(draw, (folder / what).read_bytes())
        (folder / what).write_bytes(content)
        if what == "model.safetensors":
            right = known(lambda: deserialized(content))
        elif what in ("config.json", "tokenizer.json"):
            right = known(lambda: json.loads(content.decode()))
    elif how < 0.65:
        files = (("config.json", _CONFIG_VALUES), ("tokenizer_config.json", _TOKENIZER_VALUES))
        name, choices = draw.choice(files)
        key, values = draw.choice(choices)
        what = f"{key} of {name}"
        content = json.dumps({**read_json(folder / name), key: draw.choice(values)}).encode()
        (folder / name).write_bytes(content)
    elif how < 0.9:
        what = draw.choice(names[1:])
        (folder / what).write_bytes(spoiled(draw, read_json(folder / what)))
    else:
        what = _no_weights(draw, folder)
        right = REFUSED
    (folder / "payload.py").write_text(PAYLOAD, encoding="utf-8")
    if draw.random() < 0.3:
        (here / "e.yaml").write_text(experiment_text({"backbone": {"name": "./b"}}), encoding="utf-8")
        return Trial(what, ("plan", "e.yaml", "--no-calibrate"), right)
    asked = ("--backbone", "./b", "--task", "mini-sentiment", "--language", "en")
    data = ("--data", f"{GROUND}/rows.jsonl", "--split", "train", "--output", "out.json")
    return Trial(what, ("evaluate", *asked, *data), right)


def _no_weights(draw: random.Random, folder: Path) -> str:
    """Weights that are pickled, elsewhere, or in shards that are not there."""
    weights = folder / "model.safetensors"
    weights.rename(folder / "x.safetensors")
    how = draw.randrange(4)
    if how == 0:
        (folder / "x.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickled())
        return "a pickle"
    if how == 1:
        (folder / "x.safetensors").unlink()
        return "no weights"
    shard = draw.choice(("../../etc/passwd", "nope.safetensors", "/dev/zero", "", 5, "payload.py"))
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return "an index"


def templates(draw: random.Random, here: Path) -> Trial:
    """Chat templates of backbones."""
    folder = Path(shutil.copytree(BACKBONE, here / "b"))
    text, right = draw.choice(TEMPLATES_OF_CHAT), EITHER
    if draw.random() < 0.5:
        text = _GOOD + text
    if draw.random() < 0.05:
        text, right = _GOOD, OK
    (folder / "chat_template.jinja").write_bytes(text.encode("utf-8", "surrogatepass"))
    asked = ("--backbone", "./b", "--task", "mini-sentiment", "--language", "en", "--chat-template")
    arguments = ("predict", *asked, "--input", f"{GROUND}/rows.jsonl", "--output", "out.jsonl")
    return Trial("template", arguments, right)
