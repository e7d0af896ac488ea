"""FLARE written down once more, from the formula: explicit states, one position after the other, no lingualift."""

import math

import torch


def prompt_of(row):
    """Positions of a row's prompt: `row` is (mask, where the answer starts or None)."""
    mask, start = row
    real = [position for position, is_real in enumerate(mask) if is_real]
    return real if start is None else [position for position in real if position < start]


def side_by_side(states, source_mask, target_mask, starts, padding="left", answer="last"):
    """Source states (b, m, d) -> (b, n, d): what every target position meets, zeros where it meets nothing."""
    rows, _, width = states.shape
    met = torch.zeros(rows, target_mask.shape[1], width)
    for row in range(rows):
        start = None if starts is None else starts[row]
        ours = prompt_of((source_mask[row].tolist(), None))
        theirs = prompt_of((target_mask[row].tolist(), start))
        pairs = zip(reversed(theirs), reversed(ours)) if padding == "left" else zip(theirs, ours)  # noqa: B905
        for position, source in pairs:
            met[row, position] = states[row, source]
        if start is not None and answer == "last":
            for position in range(start, target_mask.shape[1]):
                met[row, position] = states[row, ours[-1]]
    return met


def fuse(name, source, target, weights, mask, causal):
    """f(S, T) for (b, n, r) each."""
    if name == "add":
        return source + target
    if name == "mul":
        return source * target
    if name == "add_relu":
        return source.clamp(min=0) + target.clamp(min=0)
    rows = []
    for row in range(len(target)):
        outputs = []
        for position in range(target.shape[1]):
            seen = [
                other
                for other in range(target.shape[1])
                if other == position or (mask[row, other] and (other < position or not causal))
            ]
            query, keys = source[row, position], target[row, seen]
            if name == "cross_attention":
                scores = (keys @ weights["key"].T) @ (weights["query"] @ query) / math.sqrt(len(query))
                outputs.append(scores.softmax(0) @ (keys @ weights["value"].T))
            elif name == "matmul":
                outputs.append((keys @ query) @ keys)
            else:
                keys, query = keys.clamp(min=0), query.clamp(min=0)
                outputs.append((keys @ query) @ keys)
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def states_of(backbone, run, blocks, paths, where):
    """Explicit source states by path: hidden states as transformers gives them, or the inputs of projections."""
    outputs, inputs = {}, {}
    hooks = [
        block.register_forward_hook(
            lambda module, given, out, name=name: outputs.__setitem__(
                name, out[0] if isinstance(out, tuple) else out
            )
        )
        for name, block in blocks.items()
    ]
    hooks += [
        backbone.get_submodule(path).register_forward_pre_hook(
            lambda module, given, path=path: inputs.__setitem__(path, given[0])
        )
        for path in paths
    ]
    with torch.no_grad():
        hidden = run(output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    order = list(blocks)
    found = {}
    for path in paths:
        name = next(name for name in order if path.startswith(f"{name}."))
        index = order.index(name)
        if where == "block-input":
            found[path] = hidden[index]
        elif where == "block-output":
            last = index == len(order) - 1  # transformers gives the last one behind the final norm
            found[path] = outputs[name] if last else hidden[index + 1]
        else:
            found[path] = inputs[path]
    return found


def hooked(backbone, factors, met, name, scaling, mask, causal, offsets=None):
    """Put h = W·x_T + s·B·f(A·x_S, A·x_T) on the layers of a plain backbone; met: what x_S every position has."""
    hooks = []
    for path, factor in factors.items():

        def add(module, given, out, path=path, factor=factor):
            source, target = met[path] @ factor["A"].T, given[0] @ factor["A"].T
            return out + scaling * fuse(name, source, target, factor, mask, causal) @ factor["B"].T

        hooks.append(backbone.get_submodule(path).register_forward_hook(add))
    return hooks
