# ruff: noqa: C408
"""Write small adapters with the library `adapters` 1.3, in an environment of its own (it pins transformers 4.57).

    pip install torch==2.13.0 adapters==1.3.0; python backbones/adapters13.py [folder]        (default: data)

Of what it writes, `tests/bottlenecks/adapters13` holds three cases of eight architectures, without the heads.

Layout:   out/versions.json
          out/<arch>/backbone/             a transformers folder (safetensors)
          out/<arch>/<case>/<adapter>/     what `model.save_adapter` wrote, untouched
          out/<arch>/<case>/io.safetensors input_ids [, decoder_input_ids], output, output_without
          out/<arch>/<case>/case.json      model class and order of the stack
`output` is last_hidden_state for a model without a head and the logits otherwise.
Only the folders of the case `legacy_madx` are rewritten by hand, into the layout of adapter-transformers 1.x.
"""

import json
import logging
import shutil
import sys
import zlib
from pathlib import Path

import torch
import transformers as tf
from adapters.composition import Stack
from safetensors.torch import save_file

import adapters
from adapters import AdapterConfig

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "data")
VOCAB, D = 64, 16
logging.getLogger("adapters").setLevel(logging.ERROR)  # it warns at every run without an adapter

# -- backbones ----------------------------------------------------------------------------------------------
bert = dict(
    vocab_size=VOCAB,
    hidden_size=D,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=24,
)
t5 = dict(
    vocab_size=VOCAB,
    d_model=D,
    d_kv=8,
    d_ff=32,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=2,
    decoder_start_token_id=0,
    relative_attention_num_buckets=8,
)
llama = dict(
    vocab_size=VOCAB,
    hidden_size=D,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=32,
    max_position_embeddings=24,
)
gemma = dict(llama, head_dim=8, sliding_window=8, query_pre_attn_scalar=8)
gpt2 = dict(vocab_size=VOCAB, n_embd=D, n_layer=2, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0)

BACKBONES = {
    "xlmr": (tf.XLMRobertaModel, tf.XLMRobertaConfig(**bert)),
    "xlmr_mlm": (tf.XLMRobertaForMaskedLM, tf.XLMRobertaConfig(**bert)),
    "bert": (tf.BertModel, tf.BertConfig(**bert)),
    "t5": (tf.T5ForConditionalGeneration, tf.T5Config(**t5)),
    "mt5": (tf.MT5ForConditionalGeneration, tf.MT5Config(**t5)),
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig(**llama)),
    "gpt2": (tf.GPT2LMHeadModel, tf.GPT2Config(**gpt2)),
    "gemma2": (tf.Gemma2ForCausalLM, tf.Gemma2Config(**gemma)),
    "gemma3": (tf.Gemma3ForCausalLM, tf.Gemma3TextConfig(**gemma)),
}


# -- cases: {case: {adapter: configuration}}; more than one adapter means Stack in that order ------------------
def cfg(preset, reduction_factor=4, **switches):
    """A preset of `adapters` with a bottleneck of 16 / reduction_factor; other keys stay at its defaults."""
    return AdapterConfig.load(preset, reduction_factor=reduction_factor, **switches)


def madx(lang=(), task=()):
    """A language and a task adapter; arguments: the layers each leaves out."""
    return {"lang": cfg("seq_bn_inv", 2, leave_out=list(lang)), "task": cfg("seq_bn", leave_out=list(task))}


FOUR = {name: {"bn": cfg(name)} for name in ("seq_bn", "double_seq_bn", "par_bn", "seq_bn_inv")}
STACK = {"stack": madx()}
LAST_OUT = {"stack_leave_out": madx([1], [1])}
EXTRA = {
    "stack_lang_leave_out": madx([1]),
    "stack_par": {"lang": cfg("par_bn"), "task": cfg("par_bn")},
    "stack_double": {"lang": cfg("double_seq_bn"), "task": cfg("double_seq_bn")},
    "scaled_par_bn": {"bn": cfg("scaled_par_bn")},
    # most other switches of the block at once (not one of the presets)
    "bn_switches": {
        "bn": cfg(
            "double_seq_bn",
            original_ln_before=True,
            residual_before_ln=False,
            ln_before=True,
            ln_after=True,
            use_gating=True,
            scaling=0.5,
            non_linearity="gelu",
        )
    },
}
CROSS = {"cross": {"bn": cfg("double_seq_bn", cross_adapter=True)}}
CASES = {arch: {**FOUR, **STACK} for arch in BACKBONES}
CASES["xlmr_mlm"] = {"seq_bn_inv": FOUR["seq_bn_inv"]}
CASES["xlmr"].update(**LAST_OUT, **EXTRA)
CASES["t5"].update(**CROSS, stack_leave_out_dec=madx([3], [3]))  # layer 3 is block 1 of the decoder
CASES["mt5"].update(**CROSS)
CASES["llama"].update(**LAST_OUT)
for gemma_arch in ("gemma2", "gemma3"):  # seq_bn after the attention too: the only way to read its norm
    CASES[gemma_arch]["seq_bn_both"] = {"bn": cfg("seq_bn", mh_adapter=True)}


def seed(*words):
    torch.manual_seed(zlib.crc32("/".join(words).encode()))


@torch.no_grad()
def randomise(named_parameters, std):
    """Normal values for every parameter; norm weights and learned scalings around 1."""
    for name, p in named_parameters:
        p.normal_(0, std)
        if p.dim() == 1 and name.endswith(("weight", "scaling")):
            p.add_(1)


def load(arch, cls=None):
    """The saved backbone, prepared for adapters."""
    cls = cls or BACKBONES[arch][0]
    model = cls.from_pretrained(OUT / arch / "backbone", attn_implementation="eager").eval()
    model.config.name_or_path = f"tiny/{arch}"  # what adapter_config.json records as model_name
    adapters.init(model)
    return model


@torch.no_grad()
def run(model, arch):
    seed(arch, "input")
    inputs = {"input_ids": torch.randint(5, VOCAB, (2, 7))}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(5, VOCAB, (2, 5))
    out = model(**inputs)
    return inputs, (out.logits if "logits" in out else out.last_hidden_state).contiguous()


def write_io(model, arch, folder, names):
    """Outputs with the (stacked) adapters and without any."""
    model.set_active_adapters(Stack(*names))
    inputs, output = run(model, arch)
    model.set_active_adapters(None)
    without = run(model, arch)[1]
    assert (output - without).abs().max() > 0.1, "the adapter should matter"
    save_file({**inputs, "output": output, "output_without": without}, folder / "io.safetensors")
    info = {"arch": arch, "model_class": type(model).__name__, "stack": list(names)}
    (folder / "case.json").write_text(json.dumps(info, indent=2) + "\n")


def make_case(arch, case, setups, cls=None, **save_args):
    folder = OUT / arch / case
    folder.mkdir(parents=True)
    model = load(arch, cls)
    for name, config in setups.items():
        model.add_adapter(name, config=config)
        if cls is not None:
            model.add_masked_lm_head(name)
        seed(arch, case, name)
        randomise(((n, p) for n, p in model.named_parameters() if f".{name}." in n), 0.3)
        model.save_adapter(str(folder / name), name, **save_args)
    write_io(model, arch, folder, setups)


def make_legacy(arch="xlmr", case="legacy_madx"):
    """The layout of AdapterHub's first adapters.

    Old tensor names, nested `invertible_adapter`, no `version`, and "gelu", read as gelu_new. The task
    adapter lists an invertible block that it has no weights for.
    """
    folder = OUT / arch / case
    folder.mkdir(parents=True)
    inv = {"block_type": "nice", "non_linearity": "relu", "reduction_factor": 2}
    for name, kind, factor, leave_out in (("lang", "text_lang", 2, []), ("task", "text_task", 4, [1])):
        model = load(arch)
        preset = "seq_bn_inv" if kind == "text_lang" else "seq_bn"
        model.add_adapter(name, config=cfg(preset, factor, non_linearity="gelu_new", leave_out=leave_out))
        seed(arch, case, name)
        randomise(((n, p) for n, p in model.named_parameters() if f".{name}." in n), 0.3)
        model.save_adapter(str(folder / name), name)
        weights = torch.load(folder / name / "pytorch_adapter.bin")
        old = {
            k.replace("output.adapters.", f"output.layer_{kind}_adapters.").replace(
                "invertible_adapters.", "invertible_lang_adapters."
            ): v
            for k, v in weights.items()
        }
        torch.save(old, folder / name / "pytorch_adapter.bin")
        config = {
            "adapter_residual_before_ln": False,
            "attention_type": None,
            "invertible_adapter": inv,
            "leave_out": leave_out,
            "ln_after": False,
            "ln_before": False,
            "mh_adapter": False,
            "new_attention_norm": None,
            "non_linearity": "gelu",
            "original_ln_after": True,
            "original_ln_before": True,
            "output_adapter": True,
            "reduction_factor": factor,
            "residual_before_ln": True,
        }
        top = {
            "config": config,
            "hidden_size": D,
            "model_class": "XLMRobertaModel",
            "model_name": f"tiny/{arch}",
            "model_type": "xlm-roberta",
            "name": name,
            "type": kind,
        }
        (folder / name / "adapter_config.json").write_text(json.dumps(top, indent=2, sort_keys=True))
    model = load(arch)
    for name in ("lang", "task"):
        model.load_adapter(str(folder / name))
    write_io(model, arch, folder, ("lang", "task"))


def main():
    if OUT.exists():
        shutil.rmtree(OUT)
    for arch, (cls, config) in BACKBONES.items():
        seed(arch, "backbone")
        model = cls(config)
        randomise(model.named_parameters(), 0.25)
        model.save_pretrained(OUT / arch / "backbone")
        for case, setups in CASES[arch].items():
            make_case(arch, case, setups)
    make_case("xlmr", "seq_bn_safetensors", FOUR["seq_bn"], use_safetensors=True)
    make_case("xlmr", "seq_bn_inv_flex_head", FOUR["seq_bn_inv"], cls=adapters.XLMRobertaAdapterModel)
    make_legacy()
    versions = {m.__name__: m.__version__ for m in (adapters, tf, torch)}
    (OUT / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
