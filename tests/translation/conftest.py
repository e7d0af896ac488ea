"""A small NLLB with random weights and a stand-in that translates word for word."""

import json

import pytest
import transformers

from builders import tiny


@pytest.fixture(scope="session")
def nllb(tmp_path_factory):
    folder = tiny.build("nllb", tmp_path_factory.mktemp("nllb") / "model")
    return tiny.widened(folder, transformers.AutoConfig.from_pretrained(folder))


@pytest.fixture(scope="session")
def mbart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mbart") / "model"
    pieces = json.loads(tiny.tokenizer_of("xlmr")._tokenizer.to_str())["model"]["vocab"]
    tokenizer = transformers.MBart50Tokenizer(vocab=[tuple(pair) for pair in pieces], src_lang="en_XX")
    tokenizer.save_pretrained(folder)
    config = transformers.MBartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
    )  # fmt: skip
    return tiny.widened(folder, config)
