"""A head for words, for encoders whose checkpoint has none: drawn from a seed, trained once, then frozen.

It is that of the architecture's masked language model (https://arxiv.org/abs/1810.04805, section 3.1): a small
transform, and a decoder that is the frozen embeddings with a bias. Only transform and bias are new.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingualift.adapters.card import shown
from lingualift.backbone.architectures import head_modules
from lingualift.backbone.checkpoint import shapes_in, weight_files
from lingualift.backbone.hub import names_on_hub
from lingualift.backbone.loading import base_of, blank
from lingualift.backbone.reference import BackboneRef, read_config
from lingualift.errors import UserError
from lingualift.provenance import PROVENANCE_FILE, read_json, sha256_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HEAD_FILE = "words_head.safetensors"


def own_weights(model: Any) -> dict[str, torch.nn.Parameter]:
    """The weights of a model's head for words that are its own, each once: not those of the embeddings.

    Args:
        model: A masked language model.
    """
    heads = parts_of(model)
    table = model.get_input_embeddings().weight
    return {
        name: weight
        for name, weight in model.named_parameters()  # of weights that several modules share, the first name
        if name.split(".")[0] in heads and weight is not table
    }


def parts_of(model: Any) -> dict[str, torch.nn.Module]:
    """The modules that make a model's head for words, by name, in the order in which they are used."""
    return {name: getattr(model, name) for name in head_modules(model) if hasattr(model, name)}


def draw_words(model: Any, seed: int) -> None:
    """Draw a model's head for words anew, so that it follows from the seed alone."""
    import torch

    table = model.get_input_embeddings().weight
    torch.manual_seed(seed)
    for part in parts_of(model).values():
        for module in part.modules():
            own = list(module.parameters(recurse=False))
            if own and not any(weight is table for weight in own):  # the embeddings stay
                _forget(own)
                model._init_weights(module)


def _forget(weights: Iterable[Any]) -> None:
    """Let transformers initialise weights again: it marks those that it has initialised once."""
    for weight in weights:
        weight._is_hf_initialized = False


def head_alone(model: Any) -> Any:
    """What the trainer sees of a model whose head for words alone is trained.

    Its checkpoints hold the head and nothing else, and the body, which is read only, has no dropout.
    `lingualift.attachment.detach` makes the model what it was, untrained head and all.
    """
    import torch

    from lingualift.backbone.original import remembered

    class HeadAlone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = (model,)  # in a tuple, lest it be a part of this one
            for name, part in parts_of(model).items():
                self.add_module(name, part)

        def get_base_model(self) -> Any:
            """The whole model, as adapters tell it."""
            return self.whole[0]

        def forward(self, **batch: Any) -> Any:
            return self.whole[0](**batch)

        def state_dict(self, *_: Any, **__: Any) -> Any:
            """The weights of the head, each once."""
            return {name: weight.detach() for name, weight in own_weights(model).items()}

        def load_state_dict(self, state_dict: Any, *_: Any, **__: Any) -> Any:
            """Those weights, and nothing left out; what else there is to load is there already."""
            return super().load_state_dict({**super().state_dict(), **state_dict})

    with remembered(model) as original:
        alone = HeadAlone()
        for weight in own_weights(model).values():
            weight.requires_grad_(True)
        original.watch(alone)
    return alone


def save_words(model: Any, folder: Path) -> None:
    """Write the weights of a head for words into a folder."""
    from safetensors.torch import save_file

    tensors = {name: weight.detach().cpu().contiguous() for name, weight in own_weights(model).items()}
    save_file(tensors, folder / HEAD_FILE)


def check_words(folder: Path, ref: BackboneRef) -> None:
    """Check that a folder holds a head for words that was made for a backbone.

    Raises:
        UserError: it holds none, an altered one, or one of another backbone.
    """
    mend = "make one: lingualift train-head"
    if not (folder / HEAD_FILE).is_file() or not (folder / PROVENANCE_FILE).is_file():
        raise UserError(folder, f"holds no {HEAD_FILE} with its {PROVENANCE_FILE}", "a head for words", mend)
    facts = read_json(folder / PROVENANCE_FILE)
    if facts.get("weights_sha256") != sha256_file(folder / HEAD_FILE):
        raise UserError(folder / HEAD_FILE, "was altered since it was written", mend=mend)
    made_for = facts.get("backbone", {})
    if not ref.known_as(made_for.get("fingerprint")):
        found = f"was made for the backbone {shown(made_for.get('name'))!r}"
        raise UserError(folder, found, f"one made for {ref.name!r}", mend)


def load_words(model: Any, folder: Path) -> None:
    """Put a trained head for words on a model, every tensor of its file in its place.

    Raises:
        UserError: the file is damaged, or does not fit.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / HEAD_FILE
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(file, f"cannot be read ({error})", "a head for words") from None
    own = own_weights(model)
    problem = next(_misfits(own, tensors), None)
    if problem:
        raise UserError(
            file, problem, f"the head of {type(model).__name__}", "make it anew for this backbone"
        )
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(tensors[name])


def _misfits(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """What is wrong with the tensors of a head, in words."""
    import torch

    for name in own.keys() ^ tensors.keys():
        yield f"{'lacks' if name in own else 'has'} {name}"
    for name in own.keys() & tensors.keys():
        if own[name].shape != tensors[name].shape:
            yield f"{name} has the shape {tuple(tensors[name].shape)}"
        elif not torch.isfinite(tensors[name]).all():
            yield f"{name} is not finite"


@functools.cache
def holds_words(ref: BackboneRef) -> bool:
    """Whether an encoder's checkpoint has weights for every part of its head for words.

    A part that is there under an older name of its weight (`gamma`), or lacks one of several, counts as there: loading
    tells. Embeddings that the head shares are no part of it.
    """
    found = _weight_names(ref)
    if found is None:  # of the hub, and it cannot be asked for the names
        return any(
            name.endswith(("ForMaskedLM", "ForPreTraining")) for name in read_config(ref).architectures or ()
        )
    model = blank(ref)
    heads = set(head_modules(model))
    table = model.get_input_embeddings().weight
    parts = {
        name.rpartition(".")[0]
        for name, weight in model.named_parameters()
        if name.split(".")[0] in heads and weight is not table
    }
    return all(any(name.startswith(f"{part}.") for name in found) for part in parts)


def _weight_names(ref: BackboneRef) -> set[str] | None:
    """Names of the weights of a checkpoint, from the headers of its files; None if the hub does not tell them."""
    folder = Path(ref.source)
    if ref.revision is None and folder.is_dir():
        return {name for file in weight_files(folder) for name in shapes_in(file)}
    return names_on_hub(ref.source, ref.revision)


def check_speaks(ref: BackboneRef, model: Any) -> None:
    """Refuse a model whose head for words was never trained, where words are asked of it.

    Raises:
        UserError: its checkpoint has none, and none was put on it.
    """
    base = base_of(model)
    head = head_modules(base)
    fresh = sorted(name for name in base.fresh_weights if name.split(".")[0] in head)
    if fresh:
        raise UserError(
            f"backbone {ref.name!r}",
            f"its checkpoint has no head for words (it lacks {fresh[0]})",
            "one that was trained, for a task that is learnt from raw text",
            "train one, on text of all languages: lingualift train-head; then name it (--words-head)",
        )
