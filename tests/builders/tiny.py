"""Small backbones with random weights, of the real architecture classes, with real tokenizers of their kind."""

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lingualift.tasks import TASKS, shipped_languages, shipped_rows

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
NLLB_TAGS = [
    "eng_Latn",
    "deu_Latn",
    "ind_Latn",
    "jav_Latn",
    "swh_Latn",
    "tha_Thai",
    "fra_Latn",
    "zho_Hans",
    "ita_Latn",
    "spa_Latn",
]
DECODERS = ("llama", "llama3", "gemma2", "qwen2", "qwen3")
ENCODER_DECODERS = ("t5", "mt5", "nllb")
ENCODERS = ("xlmr", "bert")
LARGE = ("gemma3-words",)
"""With as many words as the real model has, most of which the tokenizer never writes: what grows with them is seen."""
BODIES = ("e5", "e5-words")
"""Encoders without a head for words and a pooling layer: `BertModel` with XLM-R's kind of tokenizer, and the second
with as many words as XLM-R."""


def quick(cases, *names):
    """The cases; those whose first value is not among the names are slow: the same code runs, of another class."""
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=() if case[0] in names else pytest.mark.slow) for case in values]


def _texts():
    for name in TASKS:
        for code in shipped_languages(name):
            for row in shipped_rows(name, code):
                yield from (value for value in row.values() if isinstance(value, str))


def _unigram(special):
    """A SentencePiece-like tokenizer, as T5, XLM-R and NLLB have."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=900, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _framed(tokenizer, single, pair):
    names = {
        name
        for part in f"{single} {pair}".split()
        if not part.startswith("$")
        for name in [part.split(":")[0]]
    }
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in sorted(names)],
    )
    return tokenizer


def _bytes(special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _pieces(special):
    """A byte-pair tokenizer over characters, as NLLB has."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def tokenizer_of(name):
    """The tokenizer of a kind of backbone."""
    if name in (*DECODERS, *LARGE):
        return hf.PreTrainedTokenizerFast(
            tokenizer_object=_bytes(["<unk>", "<s>", "</s>", "<pad>"]), **SPECIAL
        )
    if name in ("t5", "mt5"):
        extra = [f"<extra_id_{index}>" for index in range(100)]
        tokenizer = _framed(_unigram(["<pad>", "</s>", "<unk>", *extra]), "$A </s>", "$A </s> $B </s>")
        names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=extra, **names)
    if name == "nllb":
        learnt = json.loads(_pieces(["<s>", "<pad>", "</s>", "<unk>"]).to_str())["model"]
        merges = [tuple(pair) for pair in learnt["merges"]]
        languages = {"src_lang": "eng_Latn", "tgt_lang": "eng_Latn", "extra_special_tokens": NLLB_TAGS}
        return hf.NllbTokenizer(vocab=learnt["vocab"], merges=merges, **languages)
    names = {**SPECIAL, "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    tokenizer = _unigram(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    if name == "bert":
        _framed(tokenizer, "<s> $A </s>", "<s> $A </s> $B:1 </s>:1")
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
    else:
        _framed(tokenizer, "<s> $A </s>", "<s> $A </s> </s> $B </s>")
        inputs = ["input_ids", "attention_mask"]
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)


def config_of(name, size):
    """The configuration of a kind of backbone, with `size` tokens."""
    decoder = {
        "vocab_size": size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "initializer_range": 0.1,
    }  # fmt: skip
    t5 = {
        "vocab_size": size, "d_model": 32, "d_kv": 12, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 2,
        "num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    encoder = {
        "vocab_size": size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 514, "initializer_range": 0.1, "pad_token_id": 1,
        "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 2,
    }  # fmt: skip
    return {
        "llama": lambda: hf.LlamaConfig(**decoder),
        "llama3": lambda: hf.LlamaConfig(**{**decoder, "rope_theta": 500000.0, "tie_word_embeddings": True}),
        "gemma2": lambda: hf.Gemma2Config(**{**decoder, "sliding_window": 16, "query_pre_attn_scalar": 8}),
        "gemma3-words": lambda: hf.Gemma3TextConfig(
            **{**decoder, "vocab_size": 262_144, "hidden_size": 64, "tie_word_embeddings": True,
               "sliding_window": 512, "query_pre_attn_scalar": 8},
        ),
        "qwen2": lambda: hf.Qwen2Config(**decoder),
        "qwen3": lambda: hf.Qwen3Config(**decoder),
        "t5": lambda: hf.T5Config(**t5),
        "mt5": lambda: hf.MT5Config(**t5, feed_forward_proj="gated-gelu"),
        "nllb": lambda: hf.M2M100Config(
            vocab_size=size, d_model=32, encoder_layers=3, decoder_layers=2, encoder_ffn_dim=64,
            decoder_ffn_dim=64, encoder_attention_heads=4, decoder_attention_heads=4,
            max_position_embeddings=512, pad_token_id=1, bos_token_id=0, eos_token_id=2,
            decoder_start_token_id=2, init_std=0.1, encoder_layerdrop=0.0, decoder_layerdrop=0.0,
        ),
        "xlmr": lambda: hf.XLMRobertaConfig(**encoder),
        "bert": lambda: hf.BertConfig(**encoder),
        "e5": lambda: hf.BertConfig(**encoder),
        "e5-words": lambda: hf.BertConfig(**{**encoder, "vocab_size": 250_037, "hidden_size": 64}),
    }[name]()  # fmt: skip


def build(name, folder: Path) -> Path:
    """Write a backbone with random weights and its tokenizer."""
    tokenizer = tokenizer_of(name)
    config = config_of(name, len(tokenizer))
    torch.manual_seed(0)
    kinds = {
        **dict.fromkeys((*DECODERS, *LARGE), hf.AutoModelForCausalLM),
        **dict.fromkeys(ENCODER_DECODERS, hf.AutoModelForSeq2SeqLM),
        **dict.fromkeys(ENCODERS, hf.AutoModelForMaskedLM),
    }
    if name in BODIES:
        hf.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    else:
        kinds[name].from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def widened(folder, config):
    """Weights so wide that texts differ in their translations, and that some of them end before the limit."""
    config.init_std = 1.0
    torch.manual_seed(0)
    model = hf.AutoModelForSeq2SeqLM.from_config(config)
    model.get_input_embeddings().weight.data[config.eos_token_id] *= 2
    model.save_pretrained(folder)
    return folder
