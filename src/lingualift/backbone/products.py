"""Products that torch is slow at, or that need too much memory.

bfloat16 on processors without instructions for it: products are taken in float32 and rounded as bfloat16's are. There
torch multiplies bfloat16 matrices about seven times slower than float32 ones (AVX2: 8 against 60 GFLOP/s a core). The
product of two bfloat16 numbers is exact in float32, and either way the sum is taken in float32 and rounded once: it is
the same function, up to the order of sums. Memory stays that of bfloat16: weights are widened a piece at a time.
Attention likewise, whose gradients were an eighth of a training step.

LoRA on a processor: the product of its two factors is added to the layer's weights, a piece at a time, so that the
forward pass is one product. peft multiplies all states by narrow matrices, which a processor is slow at, scales, adds
and rounds in passes of their own, and keeps a float32 copy of bfloat16 states for every module. Where a processor has
instructions for bfloat16, whose weights have too few digits for that sum, the factors stay beside them, as peft has it,
without the copies.

The loss of a large vocabulary: 8 segments of 128 tokens have a gigabyte of logits with 262,144 words, and as much again
for each of softmax and gradients. A frozen head needs no more of them than the gradient of its input, which is taken
in the same pass, a few tokens at a time (as in Liger Kernel, https://arxiv.org/abs/2410.10989).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lingualift.processes import multiplies_slowly

_PIECE = 2**20  # weights that are held in float32 at once, at most: 4 MiB, which caches hold
LOGITS = 2**26
"""Logits that a loss holds at once: 256 MiB in float32."""
_ROWS = 4  # below, torch's own way is faster: it reads the weights once and widens nothing
_FEW = 8  # rows per rank of an adapter: below, adding it to the weights costs more than adding its output


def multiply_wide(model: torch.nn.Module) -> None:
    """Let the frozen bfloat16 linear layers of a model multiply in float32; nothing else about them changes."""
    for module in model.modules():
        if type(module) is torch.nn.Linear and module.weight.dtype == torch.bfloat16:
            module.__class__ = WideLinear


class WideLinear(torch.nn.Linear):
    """A frozen bfloat16 linear layer that multiplies in float32."""

    def forward(self, states: Tensor) -> Tensor:
        """The output (..., n) of states (..., k), in bfloat16."""
        if not _fits(self, states):
            return super().forward(states)
        found: Tensor = _Product.apply(states, self.weight, self.bias, None, None, 1.0)  # type: ignore[no-untyped-call]
        return found


def _fits(layer: torch.nn.Linear, states: Tensor) -> bool:
    """Whether a product with a layer's weights is one to take here."""
    # not `parameters()`: of a weight that peft computes from others they are the others
    frozen = not any(part is not None and part.requires_grad for part in (layer.weight, layer.bias))
    formats = states.dtype == layer.weight.dtype and states.device.type == "cpu"
    return formats and frozen and states.numel() >= _ROWS * layer.in_features


def fold_lora(model: torch.nn.Module) -> None:
    """Let the LoRA layers that peft put on layers of a model be part of their products, on a processor."""
    from peft.tuners import lora

    for module in model.modules():
        if type(module) is not lora.Linear or not isinstance(base := module.base_layer, torch.nn.Linear):
            continue
        plain = type(base) is torch.nn.Linear and base.weight.dtype in (torch.float32, torch.bfloat16)
        if (plain or type(base) is WideLinear) and base.weight.device.type == "cpu":
            module.__class__ = _folded()


@functools.cache
def _folded() -> type[Any]:
    from peft.tuners import lora

    class FoldedLora(lora.Linear):  # type: ignore[misc]
        """A LoRA layer that is part of its layer's product: where it is plain; peft's own way where it is not."""

        def forward(self, x: Tensor, *rest: Any, **more: Any) -> Tensor:
            """The output (..., n) of states (..., k)."""
            base, names = self.base_layer, [name for name in self.active_adapters if name in self.lora_A]
            plain = not (rest or more or self.disable_adapters or self.merged) and len(names) == 1
            found: Tensor
            if not plain or names[0] in self.lora_variant or not _fits(base, x):
                found = super().forward(x, *rest, **more)
                return found
            (name,) = names
            down, up, dropout = self.lora_A[name], self.lora_B[name], self.lora_dropout[name]
            drops = dropout.training and not isinstance(dropout, torch.nn.Identity)
            hooked = any(part._forward_hooks or part._forward_pre_hooks for part in (base, down, up, dropout))
            other = down.bias is not None or up.bias is not None or down.weight.dtype != torch.float32
            few = x.numel() < _FEW * len(down.weight) * base.in_features
            if drops or hooked or other or few:
                found = super().forward(x)
                return found
            summed = isinstance(base, WideLinear) or base.weight.dtype == torch.float32
            found = (_Product if summed else _Beside).apply(  # type: ignore[no-untyped-call]
                x, base.weight, base.bias, down.weight, up.weight, float(self.scaling[name])
            )
            return found

    return FoldedLora


class _Product(torch.autograd.Function):
    """States times a frozen matrix and the product of two small ones, if there are, plus a frozen bias."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor | None,
        up: Tensor | None,
        scaling: float,
    ) -> Tensor:
        ctx.save_for_backward(weight, *([] if down is None else [states, down, up]))
        ctx.scaling = scaling
        with torch.autocast("cpu", enabled=False):
            rows = states.reshape(-1, states.shape[-1]).float()
            # no view is given back, which nobody may change in place
            out = states.new_empty(*states.shape[:-1], len(weight))
            flat = out.view(len(rows), len(weight))
            for part, piece in _pieces(weight, down, up, scaling):
                if bias is None:
                    flat[:, part] = rows @ piece.T
                else:
                    flat[:, part] = torch.addmm(bias[part].float(), rows, piece.T)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, *adapter = ctx.saved_tensors
        states, down, up = adapter or (None, None, None)
        grad = grads[0].reshape(-1, len(weight))
        total = torch.zeros(len(grad), weight.shape[1]) if ctx.needs_input_grad[0] else None
        for_down = for_up = None
        with torch.autocast("cpu", enabled=False):
            if total is not None:
                for part, piece in _pieces(weight, down, up, ctx.scaling):
                    total.addmm_(grad[:, part].float(), piece)
            if states is not None and down is not None and up is not None:
                rows, wide = states.reshape(-1, states.shape[-1]).float(), grad.float()
                for_down = ctx.scaling * ((wide @ up).T @ rows)
                for_up = ctx.scaling * ((rows @ down.T).T @ wide).T
        if total is not None:
            total = total.to(weight.dtype).view(*grads[0].shape[:-1], -1)
        return total, None, None, for_down, for_up, None


class _Beside(torch.autograd.Function):
    """States times a frozen bfloat16 matrix, plus, in float32, times the product of two small ones, rounded again."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scaling: float,
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            rows = states.reshape(-1, states.shape[-1])
            inner = rows.float() @ down.T
            out = states.new_empty(*states.shape[:-1], len(weight))  # no view, as above
            flat = out.view(len(rows), len(weight))
            if bias is None:
                torch.mm(rows, weight.T, out=flat)
            else:
                torch.addmm(bias, rows, weight.T, out=flat)
            flat.add_(inner @ up.T, alpha=scaling)
        ctx.save_for_backward(states, weight, down, up, inner)
        ctx.scaling = scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, down, up, inner = ctx.saved_tensors
        grad = grads[0].reshape(-1, len(weight))
        total = None
        with torch.autocast("cpu", enabled=False):
            rows, wide = states.reshape(-1, states.shape[-1]), grad.float()
            outer = wide @ up
            if ctx.needs_input_grad[0]:
                total = (grad @ weight).add_(outer @ down, alpha=ctx.scaling).view(states.shape)
            for_down = ctx.scaling * (outer.T @ rows.float())
            for_up = ctx.scaling * (inner.T @ wide).T
        return total, None, None, for_down, for_up, None


def attend_wide(model: torch.nn.Module) -> None:
    """Let the attention of a bfloat16 model of transformers take its products in float32, where it is torch's own."""
    _attend_by(model, _attend_wide)


def attend_unplanned(model: torch.nn.Module) -> None:
    """Let the attention of a model on a GPU be another of torch's own than cuDNN's.

    On newer GPUs torch prefers cuDNN's, which makes a plan for every size of batch that it meets: on an H200 a third of
    a step of Gemma 3 270M, whose batches are all of other lengths.
    """
    _attend_by(model, _attend_unplanned)


def _attend_by(model: torch.nn.Module, way: Callable[..., tuple[Tensor, None]]) -> None:
    """Let the modules of a model that attend by transformers' "sdpa" do so in a way of ours.

    The name stays, since models ask for it: Gemma 4 and DeepSeek V3.2 attend to other tokens under any other.
    """
    import transformers

    transformers.AttentionInterface.register(
        "sdpa", _attend
    )  # for all models of this process; only ours are marked
    for module in model.modules():
        module.attends_by = way  # type: ignore[assignment]


def _attend(module: Any, *given: Any, **more: Any) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    found: tuple[Tensor, None] = getattr(module, "attends_by", sdpa_attention_forward)(module, *given, **more)
    return found


def _attend_unplanned(*given: Any, **more: Any) -> tuple[Tensor, None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        found: tuple[Tensor, None] = sdpa_attention_forward(*given, **more)
    return found


def _attend_wide(module: Any, query: Tensor, *others: Tensor | None, **more: Any) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    with torch.autocast(query.device.type, enabled=False):
        wide = [_wide(value) for value in (query, *others)]
        found, _ = sdpa_attention_forward(module, *wide, **{key: _wide(value) for key, value in more.items()})
    return found.to(query.dtype), None


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _pieces(
    weight: Tensor, down: Tensor | None = None, up: Tensor | None = None, scaling: float = 1.0
) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of a matrix after another, in float32, plus those of `scaling` x `up` @ `down` where they are given.

    They are a power of two, which products are fastest at.
    """
    size = 1 << (max(1, _PIECE // weight.shape[1]).bit_length() - 1)
    for start in range(0, len(weight), size):
        part = slice(start, start + size)
        piece = weight[part].float()
        yield part, piece if down is None or up is None else torch.addmm(piece, up[part], down, alpha=scaling)


def summed_loss(states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Summed negative log-likelihood, in float32, of words under a frozen head.

    Args:
        states: What the head reads, (tokens, width).
        weight: The head's matrix, (words, width); it gets no gradient.
        labels: Ids of the words, (tokens,).
    """
    found: Tensor = _SummedLoss.apply(states, weight, labels)  # type: ignore[no-untyped-call]
    return found


class _SummedLoss(torch.autograd.Function):
    """The loss, and the gradient of the states beside it."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        total = torch.zeros((), device=states.device)
        grad = torch.empty_like(states)
        size = max(1, min(len(states), LOGITS // len(weight)))
        held = torch.empty(len(weight) * size, device=states.device)
        with torch.autocast(states.device.type, enabled=False):
            for start in range(0, len(states), size):
                few, theirs = states[start : start + size], labels[start : start + size, None].T
                # words first, which is faster to fill
                logits = held[: len(weight) * len(few)].view(len(weight), len(few))
                _product(few, weight, logits)
                right = logits.gather(0, theirs)
                most = logits.amax(0, keepdim=True)
                sums = logits.sub_(most).exp_().sum(0, keepdim=True)
                total += (most + sums.log() - right).sum()
                logits.div_(sums)
                logits.scatter_add_(0, theirs, logits.new_full(theirs.shape, -1.0))
                grad[start : start + size] = _product_back(logits, weight)
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0].to(grad.dtype), None, None


def _product(states: Tensor, weight: Tensor, logits: Tensor) -> None:
    """Fill in logits (words, tokens), in float32."""
    if not multiplies_slowly(weight.dtype, weight.device.type):
        logits.copy_(weight @ states.to(weight.dtype).T)
        return
    tokens = states.float().T.contiguous()
    for part, piece in _pieces(weight):
        torch.mm(piece, tokens, out=logits[part])


def _product_back(errors: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the states (tokens, width), of errors (words, tokens)."""
    if not multiplies_slowly(weight.dtype, weight.device.type):
        return errors.T.to(weight.dtype) @ weight
    total = torch.zeros(weight.shape[1], errors.shape[1])
    for part, piece in _pieces(weight):
        total.addmm_(piece.T, errors[part])
    return total.T
