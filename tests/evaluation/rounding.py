"""How far rounding to float32 can move a Llama's log-likelihood, worked out in float64.

Each operation's result is wrong by at most so much by itself; its gradient says what that does to the score. Taken as
independent and of mean zero (the model of Higham & Mary, "A New Approach to Probabilistic Rounding Error Analysis",
SIAM J. Sci. Comput. 41(5), 2019), a sum of n products is wrong by sqrt(n) units of the sum of their sizes, and by
Hoeffding's inequality the score is further off than `k` spreads with a probability below 2 exp(-k² / 2).
"""

import contextlib
import math

import torch
from transformers import AttentionInterface

UNIT = 2.0**-24  # the largest relative error of one rounding to float32


class _Errors:
    """Results of operations, each with the largest error that its own operation adds to it, in units."""

    def __init__(self):
        self.found = []

    def add(self, result, error):
        if result.requires_grad:
            result.retain_grad()
            self.found.append((result, error.detach()))
        return result

    def after(self, module, inputs, output):
        """For every module: a sum of products, a norm, or a function of single numbers in a few roundings."""
        result = output[0] if isinstance(output, tuple) else output
        if not isinstance(result, torch.Tensor):
            return
        size = result.abs()
        if isinstance(module, torch.nn.Linear):
            error = math.sqrt(module.in_features + 1) * (inputs[0].abs() @ module.weight.abs().T)
        elif "Norm" in type(module).__name__:
            error = (4 + math.sqrt(size.shape[-1])) * size
        else:
            error = 4 * size
        self.add(result, error)

    def attention(self, module, query, key, value, attention_mask, scaling, **_):
        """Causal attention, step by step; queries and keys come in rotated, which takes three roundings."""
        groups = query.shape[1] // key.shape[1]
        query, key = (self.add(x, 4 * x.norm(dim=-1, keepdim=True).expand_as(x)) for x in (query, key))
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        sizes = query.abs() @ key.abs().mT * scaling
        later = torch.ones(sizes.shape[-2:], dtype=torch.bool).triu(1)
        scores = self.add(query @ key.mT * scaling, (4 + math.sqrt(query.shape[-1])) * sizes)
        scores = scores.masked_fill(later, -math.inf)
        shares = torch.softmax(scores, -1)
        below = (scores.amax(-1, keepdim=True) - scores).masked_fill(later, 0)
        shares = self.add(shares, (4 + math.sqrt(shares.shape[-1]) + below) * shares)
        mixed = self.add(shares @ value, math.sqrt(shares.shape[-1]) * (shares @ value.abs()))
        return mixed.transpose(1, 2).contiguous(), None


@contextlib.contextmanager
def _watched(model, errors):
    AttentionInterface.register("watched", errors.attention)
    config, hooks = model.config, [one.register_forward_hook(errors.after) for one in model.modules()]
    before, config._attn_implementation = config._attn_implementation, "watched"
    try:
        yield
    finally:
        config._attn_implementation = before
        for hook in hooks:
            hook.remove()


def rounding_spread(model, prompt, answer):
    """The score in float64, and the root of the summed squares of all its single errors, to first order.

    Args:
        model: A Llama in float64, with or without a LoRA.
        prompt: Token ids.
        answer: Token ids.
    """
    errors, ids = _Errors(), torch.tensor([[*prompt, *answer][:-1]])
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    with _watched(model, errors):
        logits = model(inputs_embeds=embedded, use_cache=False).logits[0, -len(answer) :]
    logprobs = torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None])
    errors.add(
        logprobs, math.sqrt(logits.shape[-1]) + 2 * logits.abs().max() + (2 + len(answer)) * logprobs.abs()
    )
    score = logprobs.sum()
    score.backward()
    squares = [
        ((result.grad * error) ** 2).sum() for result, error in errors.found if result.grad is not None
    ]
    return score.item(), UNIT * float(torch.stack(squares).sum().sqrt())
