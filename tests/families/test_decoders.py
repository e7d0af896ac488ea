"""Decoders of many classes: which keep packed texts apart, and which have no positions beyond some number."""

import itertools
import json

import peft
import pytest
import torch
import transformers as hf

from builders import tiny
from builders.refusals import refused
from lingualift.backbone.architectures import bound_of
from lingualift.backbone.loading import keeps_apart, load_backbone
from lingualift.backbone.reference import find_backbone, load_tokenizer
from lingualift.config import Backbone, Scoring, Training
from lingualift.encoding.collator import Collator
from lingualift.encoding.text import IGNORED, encode_pairs, encode_texts
from lingualift.evaluation.perplexity import mean_nats
from lingualift.evaluation.runner import adapted, evaluate
from lingualift.tasks import TASKS, Example
from lingualift.training.objectives import segments
from lingualift.training.trainer import initialise, train

NAMED = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
PLACES = 64
SHORT = {"vocab_size": 260, "n_embd": 32, "n_layer": 2, "n_head": 4}
APART = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**NAMED)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**NAMED, num_key_value_heads=2, head_dim=8)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**SHORT)),
    "gpt-neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**NAMED)),
}
TOGETHER = {
    "bloom": lambda: hf.BloomForCausalLM(
        hf.BloomConfig(vocab_size=260, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0)
    ),
    "mpt": lambda: hf.MptForCausalLM(
        hf.MptConfig(vocab_size=260, d_model=32, n_layers=2, n_heads=4, expansion_ratio=2, max_seq_len=64)
    ),
    "falcon": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(
            vocab_size=260, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=False
        )
    ),
    "falcon, alibi": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(
            vocab_size=260, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
        )
    ),
    "xglm": lambda: hf.XGLMForCausalLM(
        hf.XGLMConfig(vocab_size=260, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4)
    ),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            vocab_size=260,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=32,
            max_position_embeddings=64,
        )
    ),
    "biogpt": lambda: hf.BioGptForCausalLM(hf.BioGptConfig(**NAMED)),
    "gpt-oss": lambda: hf.GptOssForCausalLM(
        hf.GptOssConfig(
            **NAMED,
            num_key_value_heads=2,
            head_dim=8,
            num_local_experts=2,
            num_experts_per_tok=1,
            pad_token_id=0,
        )
    ),
    "mamba": lambda: hf.MambaForCausalLM(
        hf.MambaConfig(vocab_size=260, hidden_size=32, num_hidden_layers=2, state_size=4)
    ),
}


class Letters:
    """A tokenizer of bytes, as far as texts need one."""

    bos_token_id, eos_token_id = None, 2

    def __call__(self, texts, add_special_tokens=True):
        one = [3 + byte for byte in texts.encode()] if isinstance(texts, str) else None
        return {"input_ids": one if one is not None else [self(text)["input_ids"] for text in texts]}


@pytest.mark.parametrize("name", [*APART, *TOGETHER])
def test_no_text_sees_another_in_any_decoder(name):
    """Every token of a batch has the logits that it has where its text stands alone."""
    torch.manual_seed(0)
    model = {**APART, **TOGETHER}[name]().eval().requires_grad_(False)
    for weight in model.parameters():
        weight += 0.1 * torch.randn_like(weight)
    assert keeps_apart(model) == (name in APART)
    texts = ["a short one", "and then another that is longer", "ab", "the last"]
    batch = Collator(0, trims_logits=False)(encode_texts(Letters(), texts, 24, packed=keeps_apart(model)))
    labels = batch.pop("labels")
    padded = batch.get("attention_mask", torch.ones_like(labels)) == 0
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        for row, ids in enumerate(batch["input_ids"]):
            first = int(padded[row].sum())  # on the left, and position 0 as the first token is
            places = batch["position_ids"][row].tolist()
            starts = [first, *(i for i in range(first + 1, len(ids)) if not places[i])]
            for start, end in itertools.pairwise([*starts, len(ids)]):
                alone = model(input_ids=ids[None, start:end], use_cache=False).logits[0]
                assert torch.allclose(logits[row, start:end], alone, atol=1e-4)
                assert labels[row, start:end].tolist()[0] == IGNORED
    if name in TOGETHER:  # all but the first of each piece; one text is cut in two
        assert int((labels != IGNORED).sum()) == sum(len(text.encode()) for text in texts) - 1


def test_texts_of_one_token_are_left_out_where_each_is_a_row():
    rows = encode_texts(Letters(), ["", "ab", ""], 24, packed=False)
    assert [row["input_ids"] for row in rows] == [[3 + 97, 3 + 98, 2]]
    assert len(encode_texts(Letters(), ["", ""], 24, packed=False)) == 2


BART = {"vocab_size": 260, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32}
BART |= {"decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
BOUNDED = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**SHORT, n_positions=PLACES)),
    "gpt-neo": lambda: hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(
            vocab_size=260,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=PLACES,
        )
    ),
    "gpt-j": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**SHORT, rotary_dim=4, n_positions=PLACES)),
    "opt": TOGETHER["opt"],
    "mpt": TOGETHER["mpt"],
    "biogpt": lambda: hf.BioGptForCausalLM(hf.BioGptConfig(**NAMED, max_position_embeddings=PLACES)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART, max_position_embeddings=PLACES)),
    "marian": lambda: hf.MarianMTModel(
        hf.MarianConfig(**BART, max_position_embeddings=PLACES, pad_token_id=0, decoder_start_token_id=0)
    ),
}
GOING_ON = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**NAMED, max_position_embeddings=PLACES)),
    "gpt-neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**NAMED, max_position_embeddings=PLACES)),
    "bloom": TOGETHER["bloom"],
    "xglm": lambda: hf.XGLMForCausalLM(
        hf.XGLMConfig(
            vocab_size=260,
            d_model=32,
            ffn_dim=48,
            num_layers=2,
            attention_heads=4,
            max_position_embeddings=PLACES,
        )
    ),
    "nllb": lambda: hf.M2M100ForConditionalGeneration(
        hf.M2M100Config(**BART, max_position_embeddings=PLACES)
    ),
    "fsmt": lambda: hf.FSMTForConditionalGeneration(
        hf.FSMTConfig(
            langs=["en", "de"],
            src_vocab_size=260,
            tgt_vocab_size=260,
            **{key: value for key, value in BART.items() if key != "vocab_size"},
            max_position_embeddings=PLACES,
        )
    ),
    "t5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=260, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ),
}


@pytest.mark.parametrize("name", [*BOUNDED, *GOING_ON])
def test_a_model_is_bounded_where_it_breaks(name):
    model = {**BOUNDED, **GOING_ON}[name]().eval()
    assert bound_of(model) == (PLACES if name in BOUNDED else None)
    ids = torch.ones(1, PLACES + 1, dtype=torch.long)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        if name in GOING_ON:
            model(input_ids=ids, **more)
            return
        model(input_ids=ids[:, 1:], **{key: value[:, 1:] for key, value in more.items()})
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids, **more)


@pytest.mark.parametrize("kind", ["XLMRoberta", "Camembert", "Xmod", "Data2VecText", "MPNet"])
def test_encoders_count_positions_from_behind_their_padding(kind):
    config = getattr(hf, f"{kind}Config")(**{**NAMED, "max_position_embeddings": PLACES, "pad_token_id": 1})
    if kind == "Xmod":
        config.default_language = "en_XX"
    model = getattr(hf, f"{kind}ForMaskedLM")(config).eval()
    limit = bound_of(model)
    assert limit == PLACES - 2
    with torch.no_grad():
        model(input_ids=torch.full((1, limit), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 5))


def test_embeddings_that_are_scaled_in_place_can_be_tried():
    model = hf.CTRLLMHeadModel(
        hf.CTRLConfig(vocab_size=260, n_embd=32, dff=48, n_layer=1, n_head=2, n_positions=64)
    )
    assert keeps_apart(model.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """GPT-2 with 64 positions."""
    folder = tmp_path_factory.mktemp("short") / "gpt2"
    tiny.build("llama", folder)
    vocabulary = load_tokenizer(find_backbone(Backbone(name=str(folder)))).vocab_size
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    hf.GPT2LMHeadModel(
        hf.GPT2Config(**{**SHORT, "vocab_size": vocabulary}, n_positions=PLACES)
    ).save_pretrained(folder)
    return find_backbone(Backbone(name=str(folder)))


def examples(words):
    return [Example(str(i), "good " * words, ("a",), {"a": "good", "b": "bad"}, "en") for i in range(2)]


@pytest.mark.parametrize("answers", ["ranked", "generated"])
def test_a_prompt_beyond_the_positions_is_told_before_a_row_is_scored(short, answers):
    task = TASKS["nusax"] if answers == "ranked" else TASKS["xquad"]
    rows = examples(PLACES + 10)
    if answers == "generated":
        rows = [Example(row.id, row.prompt, ("good",), {}, "en") for row in rows]
    seen = []
    with refused("max_length", " tokens are", "64 positions", mend="set it to 64"):
        evaluate(short, None, task, rows, Scoring(), lambda done, _: seen.append(done))
    assert not seen
    if answers == "ranked":
        evaluate(short, None, task, rows, Scoring(max_length=PLACES))


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_virtual_tokens_take_positions_too(short, tmp_path, kind):
    made = {"PROMPT_TUNING": peft.PromptTuningConfig, "PREFIX_TUNING": peft.PrefixTuningConfig}[kind]
    model = hf.AutoModelForCausalLM.from_pretrained(short.source)
    peft.get_peft_model(model, made(num_virtual_tokens=10, task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "one"
    )
    rows, task = examples(PLACES + 10), TASKS["nusax"]
    with refused("max_length", "59 tokens", "a prefix of 10", "64 positions", mend="set it to 54"):
        evaluate(short, tmp_path / "one", task, rows, Scoring(max_length=60))
    evaluate(short, tmp_path / "one", task, rows, Scoring(max_length=54))


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_rows_behind_virtual_tokens_are_scored_as_plain_peft_does(backbone, tmp_path, kind):
    """Whatever is batched with them, and however long the answer: peft puts virtual tokens before padding, too."""
    ref = backbone("llama")
    made = {"PROMPT_TUNING": peft.PromptTuningConfig, "PREFIX_TUNING": peft.PrefixTuningConfig}[kind]
    plain = hf.AutoModelForCausalLM.from_pretrained(ref.source)
    wrapped = peft.get_peft_model(plain, made(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in wrapped.parameters():
            if weight.requires_grad:
                weight.normal_()
    wrapped.save_pretrained(tmp_path / "one")
    wrapped.eval()
    choices = {"a": "good", "b": "rather bad book"}
    texts = ["the red book is on the table", "x", "nobody reads it"]
    rows = [Example(str(i), text, ("a",), choices, "en") for i, text in enumerate(texts)]
    _, tokenizer = load_backbone(ref)
    found = evaluate(ref, tmp_path / "one", TASKS["nusax"], rows, Scoring())
    for row, prediction in zip(rows, found.predictions, strict=True):
        for label, words in choices.items():
            (pair,) = encode_pairs(tokenizer, [(row.prompt, words)], 512)
            ids = torch.tensor([pair.prompt + pair.answer])
            with torch.no_grad():
                logits = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            logprobs = logits[-len(pair.answer) - 1 : -1].log_softmax(-1)
            expected = logprobs.gather(-1, torch.tensor(pair.answer)[:, None]).sum().item()
            assert prediction.scores[label] == pytest.approx(expected, abs=1e-4)
    nats = []
    for count in (1, 3):
        with adapted(ref, tmp_path / "one") as (model, _):
            nats.append(mean_nats(ref, model, tokenizer, texts[:count], 16, "en"))
    assert nats[0] != nats[1]


def test_training_beyond_the_positions_is_told_before_a_step(short, tmp_path):
    from lingualift.config import Adapter

    (tmp_path / "start").mkdir()
    initialise(short, Adapter(rank=2), 0, tmp_path / "start")
    (tmp_path / "out").mkdir()
    given = {
        "settings": Training(steps=1),
        "start": tmp_path / "start",
        "seed": 0,
        "output": tmp_path / "out",
    }
    for task, rows, where in (
        ("nusax", examples(PLACES + 10), "max_length"),
        ("causal-lm", ["good " * 200], "segment_tokens"),
    ):
        with refused(where, "64 positions", mend="set it to 64") as caught:
            train(
                short, TASKS[task], rows, **given, work=tmp_path / "work", language="en", segment_tokens=128
            )
        assert "--max-length" in caught.value.on_command_line()


def test_a_model_on_its_own_refuses_what_it_has_no_positions_for(short):
    """Whoever calls it: on a GPU an index beyond a table ends the process."""
    model, _ = load_backbone(short)
    model(input_ids=torch.ones(1, PLACES, dtype=torch.long))
    with refused("max_length", "65 tokens", "64 positions", mend="set it to 64"):
        model(input_ids=torch.ones(1, PLACES + 1, dtype=torch.long))


def test_a_tokenizer_without_a_token_to_pad_with_is_refused(tmp_path):
    folder = tmp_path / "llama"
    tiny.build("llama", folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            config = json.loads((folder / name).read_text())
            kept = {key: value for key, value in config.items() if not key.endswith("_token")}
            (folder / name).write_text(json.dumps(kept))
    with refused("/llama", "no padding token", mend="tokenizer_config.json"):
        load_tokenizer(find_backbone(Backbone(name=str(folder))))


def test_texts_of_encoders_need_an_end_between_them():
    class Bare:
        eos_token_id = sep_token_id = None

    with refused("tokenizer", "end-of-text", "separator", mend="tokenizer_config.json"):
        segments(Bare(), ["a", "b"], 8)
