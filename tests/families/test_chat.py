"""Prompts asked by a chat template: every id against the whole conversation as the template itself renders it."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from typer.testing import CliRunner

from builders import tiny
from builders.refusals import refused
from lingualift.attachment import check_adapter
from lingualift.backbone import chat
from lingualift.backbone.loading import ending, load_backbone
from lingualift.backbone.reference import find_backbone
from lingualift.cli import app
from lingualift.config import Adapter, Backbone, Scoring, Training
from lingualift.encoding.text import encode_pair, encode_prompt, encode_text, training_row
from lingualift.evaluation.generation import generate_answers
from lingualift.evaluation.likelihood import score_choices
from lingualift.evaluation.runner import adapted
from lingualift.tasks import TASKS, Example, shipped_languages, shipped_rows
from lingualift.training.trainer import initialise, train

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|head|>' + m['role'] + '<|headed|>\n\n' + (m['content'] | trim) + '<|turned|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|headed|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|head|>' + m['role'] + '\n' + m['content'] + '<|turned|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<|head|>' + role + '\n' + (m['content'] | trim) + '<|turned|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>model\n' }}{% endif %}"
)
THINKING = (  # a last answer has its thoughts before it, empty ones too; without them if that is asked
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|head|>assistant\n<think>\n\n</think>\n\n' + m['content'] + '<|turned|>\n' }}"
    "{% else %}{{ '<|head|>' + m['role'] + '\n' + m['content'] + '<|turned|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
MISTRAL = (  # a space before the answer, and the end of the text after it
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|head|> ' + m['content'] + ' <|headed|>' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"llama3": LLAMA3, "chatml": CHATML, "gemma": GEMMA, "thinking": THINKING, "mistral": MISTRAL}
MARKS = ["<|head|>", "<|headed|>", "<|turned|>"]
WORDS = st.text(st.characters(exclude_characters="<|>", exclude_categories=["Cs", "Cc"]), max_size=20).map(
    str.strip
)


def chatty(template):
    """A tokenizer of bytes with the special tokens of the templates; like Llama's, it begins every text."""
    tokenizer = tiny.tokenizer_of("llama")
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.chat_template = template
    tiny._framed(tokenizer.backend_tokenizer, "<s> $A", "<s> $A <s> $B")
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers():
    return {name: chatty(template) for name, template in TEMPLATES.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Template -> a backbone whose tokenizer carries it."""
    made = {}

    def get(template):
        if template not in made:
            path = tmp_path_factory.mktemp("chatty") / "backbone"
            tokenizer = chatty(template)
            torch.manual_seed(0)
            hf.AutoModelForCausalLM.from_config(tiny.config_of("llama", len(tokenizer))).save_pretrained(path)
            tokenizer.save_pretrained(path)
            made[template] = path
        return made[template]

    return get


@pytest.fixture(scope="module")
def found(folder):
    return lambda name, chat=True, **more: find_backbone(
        Backbone(name=str(folder(TEMPLATES[name])), chat_template=chat, **more)
    )


def conversation(tokenizer, prompt, answer):
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return list(tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"])


@pytest.mark.parametrize("name", TEMPLATES)
@given(prompt=WORDS.filter(bool), answer=WORDS.filter(bool))
def test_prompt_answer_and_end_begin_the_whole_conversation(tokenizers, name, prompt, answer):
    tokenizer = tokenizers[name]
    pair = encode_pair(tokenizer, prompt, answer, 1000)
    whole = conversation(tokenizer, prompt, answer)
    row = training_row(tokenizer, pair)
    assert whole[: len(row["input_ids"])] == row["input_ids"]
    assert tokenizer.decode(whole[len(row["input_ids"]) :]).strip() == ""
    assert pair.prompt == encode_prompt(tokenizer, prompt)
    assert [label for label in row["labels"] if label != -100] == pair.answer + ending(tokenizer)
    assert (
        tokenizer.decode(pair.answer).strip() == tokenizer.decode(tokenizer(answer)["input_ids"][1:]).strip()
    )
    assert pair.prompt.count(tokenizer.bos_token_id) == (name not in ("chatml", "thinking"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_turn_ends_with_the_token_that_the_template_ends_it_with(tokenizers, name):
    expected = "</s>" if name == "mistral" else "<|turned|>"
    assert tokenizers[name].convert_ids_to_tokens(ending(tokenizers[name])) == [expected]
    text = tokenizers[name].decode(encode_pair(tokenizers[name], "Why?", "Because.", 1000).prompt)
    assert text.endswith(
        {"llama3": "\n\n", "chatml": "assistant\n", "gemma": "model\n", "thinking": "</think>\n\n"}.get(
            name, "<|headed|>"
        )
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_long_prompt_loses_its_own_words_and_nothing_of_the_template(tokenizers, name):
    tokenizer = tokenizers[name]
    whole = encode_pair(tokenizer, "one two three four five six seven eight", "nine", 1000)
    short = encode_pair(
        tokenizer, "one two three four five six seven eight", "nine", len(whole.prompt + whole.answer) - 5
    )
    assert short.truncated == 5
    text = tokenizer.decode(short.prompt)
    before, _, after = tokenizer.decode(whole.prompt).partition("one two three four five six seven eight")
    assert text.startswith(before)
    assert text.endswith("eight" + after)
    least = len(encode_pair(tokenizer, "one", "nine", 1000).prompt)
    with refused("max_length", f"{least} tokens", "no prompt", "2 tokens", mend="raise `max_length`"):
        encode_pair(tokenizer, "one", "nine", least)


@pytest.mark.parametrize("name", TEMPLATES)
def test_likelihoods_are_those_of_the_whole_conversation(found, name):
    model, tokenizer = load_backbone(found(name))
    example = Example("1", "How many?", ("one",), {"one": "one apple", "two": "two pears and a plum"}, "en")
    (scores,), _ = score_choices(model, tokenizer, [example], Scoring())
    for label, words in example.choices.items():
        ids = conversation(tokenizer, example.prompt, words)
        asked = len(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": example.prompt}],
                add_generation_prompt=True,
                enable_thinking=False,
                tokenize=True,
            )["input_ids"]
        )
        end = len(ids) - ids[::-1].index(ending(tokenizer)[0]) - 1
        with torch.inference_mode():
            logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        expected = sum(float(logprobs[place - 1, ids[place]]) for place in range(asked, end))
        assert scores[label] == pytest.approx(expected, abs=1e-4)


class _Says:
    """A model that says the ids it is told, whatever it is asked."""

    device = torch.device("cpu")

    def __init__(self, ids):
        self.ids, self.config = ids, None

    def generate(self, input_ids, attention_mask, generation_config):
        self.config, self.asked = generation_config, input_ids
        return torch.cat([input_ids, torch.tensor([self.ids] * len(input_ids))], dim=1)


@pytest.mark.parametrize("name", TEMPLATES)
def test_generation_asks_by_the_template_and_stops_at_the_end_of_the_turn(tokenizers, name):
    tokenizer = tokenizers[name]
    end = ending(tokenizer)[0]
    says = _Says(
        [*tokenizer("yes it is", add_special_tokens=False)["input_ids"], end, *tokenizer("more")["input_ids"]]
    )
    texts, _ = generate_answers(says, tokenizer, [Example("1", "Is it?", ("yes",))], Scoring(), 9)
    assert texts == ["yes it is"]
    assert set(says.config.eos_token_id) == {end, tokenizer.eos_token_id}
    assert says.asked[0].tolist() == encode_prompt(tokenizer, "Is it?")


def learn(ref, task, rows, output, steps):
    (output / "start").mkdir(parents=True)
    (output / "made").mkdir()
    initialise(ref, Adapter(rank=4), 0, output / "start")
    settings = Training(steps=steps, batch_size=2, learning_rate=3e-2, max_length=128)
    train(
        ref, task, rows, settings, start=output / "start", seed=0, output=output / "made", work=output / "work",
        language="en", segment_tokens=24,
    )  # fmt: skip
    return output / "made"


def test_a_model_learns_to_answer_and_to_stop(found, tmp_path):
    """By real training and real generation: the answer comes back, and nothing after it."""
    ref = found("chatml")
    rows = [
        Example("1", "What colour?", ("red",)),
        Example("2", "What size?", ("big",)),
    ]
    adapter = learn(ref, TASKS["mgsm"], rows, tmp_path, steps=40)
    with adapted(ref, adapter) as (model, tokenizer):
        texts, _ = generate_answers(model, tokenizer, rows, Scoring(), 12)
    assert texts == ["red", "big"]
    provenance = json.loads((adapter / "provenance.json").read_text())
    assert provenance["chat_template"] is True
    check_adapter(ref, adapter)
    with refused("/made", "the chat template", mend="--chat-template"):
        check_adapter(found("chatml", chat=False), adapter)


def test_raw_text_is_never_asked(found, tmp_path):
    """A reference is the same to the last bit with and without the template, and goes with both."""
    texts = ["the red book is on the table"] * 4
    made = [
        learn(found("llama3", chat=chat), TASKS["causal-lm"], texts, tmp_path / str(chat), steps=3)
        for chat in (True, False)
    ]
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in made)
    assert all(torch.equal(one[key], other[key]) for key in one)
    for asked in (True, False):
        _, tokenizer = load_backbone(found("llama3", chat=asked))
        assert tokenizer.decode(encode_text(tokenizer, texts[0])) == "<s>" + texts[0]
        for adapter in made:
            check_adapter(found("llama3", chat=asked), adapter)


def test_a_template_is_used_only_where_that_is_said(found):
    plain, asked = found("llama3", chat=False), found("llama3")
    assert plain.fingerprint == asked.fingerprint
    assert plain.identity() != asked.identity()
    assert "chat" not in plain.identity()
    _, tokenizer = load_backbone(plain)
    assert tokenizer.decode(encode_prompt(tokenizer, "Why?")) == "<s>Why?"
    pair = encode_pair(tokenizer, "Why?", "So.", 100)
    assert tokenizer.decode(training_row(tokenizer, pair)["input_ids"]) == "<s>Why? So.</s>"
    assert Backbone(name="miniworld").chat_template is False


REFUSED = {
    "no assistant": ("{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('only users') }}{% endif %}"
                     "{{ m['content'] }}<|turned|>{% endfor %}", "only users"),
    "no user": ("{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}<|turned|>{% endif %}"
                "{% endfor %}", "user's turn"),
    "shouts": ("{% for m in messages %}<|head|>{{ m['content'] | upper }}<|turned|>{% endfor %}", "user's turn"),
    "one line": (CHATML.replace("m['content']", "(m['content'] | replace('\n', ' '))"), "user's turn"),
    "whispers": (MISTRAL.replace("' ' + m['content']", "m['content'] | lower"), "the answer as it is"),
    "unended": ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n###' }}{% endfor %}"
                "{% if add_generation_prompt %}assistant: {% endif %}", "no special token"),
    "thinks": (THINKING.replace("enable_thinking is defined", "false"), "the answer as it is"),
    "broken": ("{% for m in messages %}{{ m['content'] }}", "for"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_cannot_be_used_is_refused_before_a_weight_is_loaded(folder, name):
    template, told = REFUSED[name]
    with refused("backbone.chat_template", told, mend="leave `chat_template` out"):
        find_backbone(Backbone(name=str(folder(template)), chat_template=True))
    find_backbone(Backbone(name=str(folder(template))))


@pytest.mark.parametrize(
    ("name", "told"),
    [("llama", "has no chat template"), ("t5", "the encoder-decoders"), ("xlmr", "the encoders")],
)
def test_a_backbone_without_a_template_is_refused(backbone, name, told):
    with refused("backbone.chat_template", told, mend="leave `chat_template` out"):
        find_backbone(Backbone(name=backbone(name).source, chat_template=True))


def test_the_command_line_asks_by_the_template_and_tells_so(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = shipped_languages("nusax")[0]
    for split in ("train", "test"):
        text = "".join(json.dumps(row) + "\n" for row in shipped_rows("nusax", code))
        (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
    asked = ["--backbone", str(folder(GEMMA)), "--task", "nusax", "--language", code]
    made = ["train", *asked, "--data", "{split}.jsonl", "--steps", "1", "--output"]
    scored = ["evaluate", *asked, "--data", "{split}.jsonl", "--adapter", "merged", "--output"]

    def call(*arguments):
        outcome = CliRunner().invoke(app, arguments)
        if outcome.exception and not isinstance(outcome.exception, SystemExit):
            raise outcome.exception

    call(*made, "one", "--chat-template")
    call(
        "merge", "--method", "arithmetic", "--adapter", "one=1", "--adapter", "one=1", "--output", "merged"
    )  # fmt: skip
    call(*scored, "in.json", "--chat-template")
    with refused("merged", "the chat template", mend="--chat-template"):
        call(*scored, "out.json")
    assert not (tmp_path / "out.json").exists()
    assert json.loads((tmp_path / "in.json").read_text())["chat_template"] is True
    call(
        "predict", *asked, "--input", "test.jsonl", "--adapter", "merged", "--chat-template", "--output", "p.jsonl"
    )  # fmt: skip
    answers = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (tmp_path / "in.predictions.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in answers] == [row["prediction"] for row in rows]
    with refused("quantization", "'nf4'", "'nf5'"):
        call(*made, "two", "--quantization", "nf5")


HOSTILE = {  # what no template may do, and what is said of it
    "{{ 1 / 0 }}": "ZeroDivisionError",
    "{% for i in range(999999) %}x{% endfor %}": "Range too big",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError",
    "{{ 'a' * 10**9 * 20 }}": "asks for more than 1073741824 bytes",
    "{% set x = namespace(s='ab') %}{% for i in range(99) %}{% set x.s = x.s ~ x.s %}{% endfor %}": "asks for more",
    "{{ '%2000000000d' % 1 }}": "asks for more",
    "{{ 'a' * 2**23 }}": "writes more than 4194304 characters",
    "{% break %}": "SyntaxError",
    "{{ '(' * 9 }}{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}": "(RecursionError|process ends)",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "SecurityError",
    "{{ '\ud800' }}": "UnicodeEncodeError",
    "{% for %}": "TemplateSyntaxError",
    "{% include '/etc/passwd' %}": "no loader",
    "{{ messages[0].content.encode('ascii') }}": "UnicodeEncodeError",
}


def test_a_template_that_fails_or_asks_for_too_much_is_one_message():
    for template, said in HOSTILE.items():
        with refused("backbone.chat_template", mend="leave `chat_template` out") as told:
            chat.frame(chatty(template))
        assert re.search(said, told.value.found)
    for template in (5, {"tool_use": CHATML}, {"default": 5}):
        with refused("backbone.chat_template", "cannot be used", mend="leave `chat_template` out"):
            chat.frame(chatty(template))


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setitem(chat.BOUNDS, "seconds", 0.5)
    chat._renderer.cache_clear()
    yield
    chat._renderer.cache_clear()


def test_a_template_that_takes_long_is_stopped_in_whatever_conversation_it_does(hurried):
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    power = "{{ 9 ** (9 ** (messages | length + 8)) }}"
    for slow in (loops, power):
        tokenizer = chatty("{% if 'Zzz' in messages[0]['content'] %}" + slow + "{% endif %}" + CHATML)
        assert encode_prompt(tokenizer, "Why?")
        with refused("backbone.chat_template", "longer than 0.5 seconds"):
            encode_prompt(tokenizer, "Zzz?")
        assert encode_prompt(tokenizer, "Why?") == conversation_start(tokenizer, "Why?")


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next_one(monkeypatch):
    tokenizer, loads = chatty(CHATML), json.loads

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat.json, "loads", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_prompt(tokenizer, "One?")
    monkeypatch.setattr(chat.json, "loads", loads)
    assert encode_prompt(tokenizer, "Two?") == conversation_start(tokenizer, "Two?")


def test_the_process_that_renders_ends_with_the_one_that_asks(tmp_path):
    script = tmp_path / "asks.py"
    script.write_text(
        "import os, sys\nfrom lingualift.backbone import chat\n"
        "class Asked:\n    special_tokens_map = {}\n"
        "    def get_chat_template(self): return '{{ messages[0].content }}'\n"
        "assert chat.user_turn(Asked(), 'x') == 'x'\n"
        "print(chat._renderer(os.getpid())._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    child = Path(f"/proc/{int(done.stdout)}")
    until = time.monotonic() + 10
    while child.exists() and "Z" not in (child / "stat").read_text().split()[2] and time.monotonic() < until:
        time.sleep(0.05)
    assert not child.exists() or "Z" in (child / "stat").read_text().split()[2]


def conversation_start(tokenizer, prompt):
    turns = [{"role": "user", "content": prompt}]
    return list(tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True)["input_ids"])
