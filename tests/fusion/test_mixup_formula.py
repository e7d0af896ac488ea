"""X-Mixup's outputs, loss and gradients are those of the formula."""

import copy

import mixing_reference as formula
import pytest
import torch
import transformers as hf
from torch.nn import functional

import lingualift as ll
from builders import mixed, small

NAMES = mixed.NAMES
BLOCK = {"llama": "model.layers.{}", "xlmr": "roberta.encoder.layer.{}", "t5": "encoder.block.{}"}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def reference(name, backbone, model, layer, ratio, scaling=1.5):
    """The formula on a copy of the backbone, with the model's tensors: LoRA's, the mixer's, the head's."""
    backbone = copy.deepcopy(backbone)
    tensors = {key: p.detach().clone().requires_grad_() for key, p in model.mixer.named_parameters()}
    mixer = {key.split(".")[0]: tensor for key, tensor in tensors.items()}
    factors = small.factors(model)
    found = formula.Reference(backbone, factors, mixer, BLOCK[name].format(layer), ratio, scaling)
    return found, factors, mixer


def check_gradients(model, factors, mixer, plain):
    seen = 0
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            path, tail = key.removeprefix("base_model.model.").split(".lora_", 1)
            expected = factors[path][tail[0]].grad
        elif key.startswith("mixer."):
            expected = mixer[key.split(".")[1]].grad
        elif "modules_to_save" in key:
            expected = plain.get_parameter(
                key.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
            ).grad
        else:
            assert not parameter.requires_grad, key
            continue
        assert expected.abs().max() > 1e-6, key
        assert torch.allclose(parameter.grad, expected, atol=1e-5, rtol=1e-4), key
        seen += 1
    assert seen > 8


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("layer", "ratio", "answers", "states"), [(None, 0.5, 1.0, 1.0), (1, 0.3, 0.7, 20.0)]
)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_loss_and_gradients(name, layer, ratio, answers, states, side):
    backbone, given = mixed.plain(name), mixed.batch(name, side)
    weights = {"answer_consistency": answers, "state_consistency": states}
    model = mixed.mixed(name, backbone, layer=layer, ratio=ratio, **weights)
    middle = {"llama": 0, "xlmr": 0, "t5": 1}[name]
    found, factors, mixer = reference(name, backbone, model, middle if layer is None else layer, ratio)
    ours, theirs, divergence, distance, rows = formula.losses(found, given, mixed.FAMILY[name])
    assert min(float(each.detach()) for each in (ours, theirs, divergence, distance)) > 1e-3
    expected = ours + theirs + answers * divergence + states * distance
    output = model(**given)
    assert torch.allclose(output.loss, expected, **CLOSE)
    for row, (logits, mask) in enumerate(zip(output.logits, given["attention_mask"], strict=True)):
        logits = logits[mask.bool()] if name == "llama" else logits
        logits = logits[: len(rows[row].logits)] if name == "t5" else logits
        assert torch.allclose(logits, rows[row].logits, **CLOSE)
    output.loss.backward()
    expected.backward()
    check_gradients(model, factors, mixer, found.backbone)


@pytest.mark.parametrize("name", NAMES)
def test_without_consistency_the_loss_is_that_of_both_tasks(name):
    given = mixed.batch(name)
    model = mixed.mixed(name, answer_consistency=0, state_consistency=0)
    source = {key.removeprefix("source_"): value for key, value in given.items() if key.startswith("source_")}
    with torch.no_grad():
        output = model(**given)
        with model.fusion_off():
            theirs = model(**source).loss
        logits, labels = output.logits, given["labels"]
        if name == "llama":
            logits, labels = logits[:, :-1], labels[:, 1:]
        if name != "xlmr":
            logits, labels = logits.flatten(0, 1), labels.flatten()
        assert torch.allclose(output.loss, functional.cross_entropy(logits, labels) + theirs, **CLOSE)
        here = int((labels != -100).sum())
        step = model(**given, num_items_in_batch=torch.tensor(4 * here)).loss  # one batch of four
        assert torch.allclose(step, output.loss / 4, **CLOSE)


def test_spans_compare_states_alone():
    backbone = mixed.plain("xlmr", hf.AutoModelForQuestionAnswering)
    given = {key: value for key, value in mixed.batch("xlmr").items() if "labels" not in key}
    for prefix in ("", "source_"):
        given |= {
            f"{prefix}start_positions": torch.tensor([1, 0, 1]),
            f"{prefix}end_positions": torch.tensor([2, 1, 1]),
        }
    head = {"modules_to_save": ["qa_outputs"]}
    loss = {
        weights: float(
            mixed.mixed(
                "xlmr", backbone, answer_consistency=weights[0], state_consistency=weights[1], **head
            )(**given).loss.detach()
        )
        for weights in ((0, 0), (1, 0), (0, 3))
    }
    assert loss[0, 0] == loss[1, 0]
    found, _, _ = reference("xlmr", backbone, mixed.mixed("xlmr", backbone, **head), 0, 0.5)
    distances = []
    rows = zip(
        *(formula.real(given[f"{p}input_ids"], given[f"{p}attention_mask"]) for p in ("", "source_")),
        strict=True,
    )
    with torch.no_grad():
        for target, source in rows:
            _, theirs = found.run(source)
            _, ours = found.run(target, theirs)
            distances.append((formula.mean(ours) - formula.mean(theirs)).pow(2).mean())
    assert loss[0, 3] - loss[0, 0] == pytest.approx(3 * float(torch.stack(distances).mean()), abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_ratio_1_is_plain_lora_on_the_first_stage(name, tmp_path):
    import peft

    backbone = mixed.plain(name)
    settings = {"r": 3, "lora_alpha": 5, "target_modules": small.NAMES[name]}
    first = peft.get_peft_model(copy.deepcopy(backbone), peft.LoraConfig(**settings))
    small.draw(first, seed=8)
    first.save_pretrained(tmp_path)
    model = mixed.mixed(name, backbone, first_stage=tmp_path, ratio=1.0)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": small.NAMES[name]}
    lora = peft.get_peft_model(first.merge_and_unload(), peft.LoraConfig(**settings)).eval()
    theirs = {key: value for key, value in model.state_dict().items() if "lora_" in key}
    assert not lora.load_state_dict(theirs, strict=False).unexpected_keys
    given = mixed.batch(name)
    with torch.no_grad():
        found = model(**given).logits
        expected = lora(**small.target_only(given)).logits
        mixing = mixed.mixed(name, backbone, first_stage=tmp_path)(**given).logits
    assert torch.allclose(found, expected, **CLOSE)
    assert not torch.allclose(found, mixing, atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_untrained_it_is_the_backbone(name):
    """LoRA's B and the way back out of the bottleneck are 0: it starts where the first stage ended."""
    backbone, given = mixed.plain(name), mixed.batch(name)
    config = ll.MixupConfig(target_modules=small.NAMES[name], ratio=0.3)
    model = ll.mixup(copy.deepcopy(backbone), config).eval()
    with torch.no_grad():
        assert torch.allclose(model(**given).logits, backbone(**small.target_only(given)).logits, **CLOSE)
    loss = model(**given).loss
    loss.backward()
    assert model.mixer.up.weight.grad.abs().max() > 1e-6
