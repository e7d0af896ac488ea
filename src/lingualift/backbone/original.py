"""A model as it was before an adapter was put on it, and how it becomes that again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_SAMPLES = 256  # numbers of every tensor that are compared


class Original:
    """What a model is, to be put back whatever an adapter wrapped, replaced, hooked or wrote into.

    peft's own unloading leaves saved modules, copies of layers, token wrappers, changed configurations and whatever was
    loaded into the backbone's own weights (biases, embeddings) behind; (IA)³ on 4-bit weights it refuses to take off.

    Modules, hooks and configurations are remembered as they are, which costs no memory. Of the weights, those are
    copied that `watch` finds an adapter to train, to have replaced or to load into; of all others samples are compared.

    Args:
        model: The model, before the adapter.
        whole: Whether all weights are copied, for an adapter that changes them in place when it is put on.
    """

    def __init__(self, model: torch.nn.Module, *, whole: bool = False) -> None:
        self._model, self._done = model, False
        self._objects: list[tuple[Any, type, dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        seen: set[int] = set()
        for module in model.modules():
            self._remember(module, seen)
        self._tensors = dict(_tensors(model))
        self._trained = {name: tensor.requires_grad for name, tensor in self._tensors.items()}
        self._facts = _facts(self._tensors)
        self._held: dict[str, Tensor] = {name: tensor.data for name, tensor in self._tensors.items()}
        self._copies: dict[str, Tensor] = {}
        for name in self._tensors if whole else ():
            self._copy(name)

    def _remember(self, thing: Any, seen: set[int]) -> None:
        """Remember what an object holds: a module, a configuration, or a container in one of them."""
        if id(thing) in seen:
            return
        seen.add(id(thing))
        if isinstance(thing, dict | list | set):
            self._containers.append((thing, thing.copy()))
            inner = list(thing.values()) if isinstance(thing, dict) else list(thing)
        else:
            self._objects.append((thing, type(thing), dict(vars(thing))))
            inner = list(vars(thing).values())
        for value in inner:
            if isinstance(value, dict | list | set) or _is_configuration(value):
                self._remember(value, seen)

    def watch(self, wrapped: torch.nn.Module) -> None:
        """Copy the weights that an adapter trains or has replaced, and from now on those that are loaded into.

        Args:
            wrapped: The model with the adapter on it; this becomes its `original`.
        """
        self._keep_replaced()
        for name, tensor in self._tensors.items():
            if tensor.requires_grad:
                self._copy(name)
        wrapped.register_load_state_dict_pre_hook(self._before_loading)  # type: ignore[no-untyped-call]
        wrapped.original = self  # type: ignore[assignment]

    def _keep_replaced(self) -> None:
        for name, data in self._held.items():
            if data.data_ptr() != self._tensors[name].data_ptr():
                self._copies.setdefault(name, data)
        self._held = {}

    def _before_loading(self, module: torch.nn.Module, state: dict[str, Any], *_: Any) -> None:
        names = {id(tensor): name for name, tensor in self._tensors.items()}
        for key, tensor in module.state_dict(keep_vars=True).items():
            if key in state and id(tensor) in names:
                self._copy(names[id(tensor)])

    def _copy(self, name: str) -> None:
        if name not in self._copies:
            self._copies[name] = self._tensors[name].detach().clone()

    def restore(self) -> None:
        """Make the model what it was; once, since what is done to it later is its owner's.

        Raises:
            RuntimeError: a weight was changed that nothing copied. The model is not to be used any more.
        """
        if self._done:
            return
        self._done = True
        self._keep_replaced()  # where the adapter did not get as far as `watch`
        for thing, contents in self._containers:
            _follow(thing, contents)
            thing.clear()
            (thing.extend if isinstance(thing, list) else thing.update)(contents)
        for thing, kind, attributes in self._objects:
            if type(thing) is not kind:
                thing.__class__ = kind
            vars(thing).clear()
            vars(thing).update(attributes)
        for name, kept in self._copies.items():
            _put_back(self._tensors[name], kept)
        for name, tensor in self._tensors.items():
            if tensor.requires_grad and not self._trained[name]:
                tensor.grad = None
            if tensor.requires_grad is not self._trained[name]:
                tensor.requires_grad_(self._trained[name])
        self._check()

    def _check(self) -> None:
        found, expected = _facts(dict(_tensors(self._model))), self._facts
        for name in expected | found:
            if not _same(found.get(name), expected.get(name)):
                raise RuntimeError(f"an adapter that was taken off has changed {name} of the backbone")


@contextmanager
def remembered(model: torch.nn.Module, *, whole: bool = False) -> Iterator[Original]:
    """What a model is, while something is put on it; it is that again where that fails. Arguments as for `Original`."""
    original = Original(model, whole=whole)
    try:
        yield original
    except BaseException:
        original.restore()
        raise


Facts = tuple[tuple[int, ...], torch.dtype, Tensor]


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All weights and buffers by name, each once."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _is_configuration(value: Any) -> bool:
    """Whether a value is a configuration of transformers', which its modules share."""
    return hasattr(value, "to_diff_dict")


def _follow(now: Any, before: Any) -> None:
    """Move or cast remembered buffers as those of the model were, of which `Module.to` makes new ones."""
    for key, tensor in before.items() if isinstance(before, dict) else ():
        other = now.get(key)
        both = isinstance(tensor, Tensor) and isinstance(other, Tensor) and other is not tensor
        if both and (tensor.device, tensor.dtype) != (other.device, other.dtype):
            tensor.data = tensor.data.to(other.device, other.dtype)


def _put_back(tensor: Tensor, kept: Tensor) -> None:
    data = tensor.data
    if (data.shape, data.dtype) == (kept.shape, kept.dtype):
        data.copy_(kept)
    else:
        tensor.data = kept.to(data.device)


def _facts(tensors: dict[str, Tensor]) -> dict[str, Facts]:
    return {
        name: (tuple(tensor.shape), tensor.dtype, _sample(tensor.data)) for name, tensor in tensors.items()
    }


def _sample(tensor: Tensor) -> Tensor:
    """Numbers spread evenly over a tensor, on its device."""
    if tensor.is_meta:
        return tensor.new_empty(0)
    places = torch.linspace(0, tensor.numel() - 1, min(_SAMPLES, tensor.numel()), dtype=torch.float64)
    return tensor.reshape(-1)[places.long().to(tensor.device)]


def _same(found: Facts | None, expected: Facts | None) -> bool:
    """Whether two tensors are alike; one that was moved or cast since is only as long as it was."""
    if found is None or expected is None or found[0] != expected[0]:
        return False
    return found[1] != expected[1] or bool(torch.equal(_bits(found[2]), _bits(expected[2])))


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, in which NaN equals itself."""
    return tensor.cpu().contiguous().view(torch.uint8)
