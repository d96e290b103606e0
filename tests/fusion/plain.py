"""Every fusion operator in NumPy, one example at a time, with absent modalities left out.

Each takes the operator, its parameters, and dictionaries of the present modalities only: name ->
tokens [N, D] (valid ones), pooled [D] and gain (1 everywhere is the plain operator); and `names`,
all modalities of the model.
"""

import numpy as np

from tests.reference import block, dense, norm, sigmoid


def concat(operator, params, names, tokens, pooled, gains):
    zero = np.zeros_like(next(iter(pooled.values())))
    return np.concatenate([gains[n] * pooled[n] if n in pooled else zero for n in names])


def total(operator, params, names, tokens, pooled, gains):
    return sum(gains[n] * pooled[n] for n in pooled)


def mean(operator, params, names, tokens, pooled, gains):
    return np.mean([gains[n] * pooled[n] for n in pooled], axis=0)


def pairs(source, pooled):
    found = [(s, t) for s in pooled for t in pooled if s != t and source in ("", s)]
    return found or [(n, n) for n in pooled]


def gated(operator, params, names, tokens, pooled, gains):
    y = {n: dense(params[f"project_{n}"], gains[n] * pooled[n]) for n in pooled}
    return np.mean([sigmoid(y[s]) * y[t] for s, t in pairs(operator.gate, pooled)], axis=0)


def film(operator, params, names, tokens, pooled, gains):
    x = {n: gains[n] * pooled[n] for n in pooled}
    parts = []
    for s, t in pairs(operator.condition, pooled):
        gamma, beta = np.split(dense(params[f"modulate_{s}"], x[s]) * (s != t), 2)
        parts.append((1 + gamma) * x[t] + beta)
    return np.mean(parts, axis=0)


def low_rank(operator, params, names, tokens, pooled, gains):
    # The tensor of the paper is built here: W[i, d_1, ..., d_M, h] contracted with all of them.
    found = 0
    for i in range(operator.rank):
        product = 1
        for n in pooled:
            width = pooled[n].size
            part = slice(i * width, (i + 1) * width)
            table = np.concatenate(
                [
                    params[f"factor_{n}"]["kernel"][:, part],
                    params[f"factor_{n}"]["bias"][None, part],
                ]
            ).astype(np.float64)
            product = product * (np.append(gains[n] * pooled[n], 1) @ table)
        found = found + product
    return found


def embedded(params, tokens):
    return {n: tokens[n] + params[f"embedding_{n}"] for n in tokens}


def log_gains(tokens, gains):
    return {n: np.full(len(tokens[n]), np.log(gains[n])) for n in tokens}


def transformer(operator, params, names, tokens, pooled, gains):
    x = np.concatenate([np.float64(params["cls"])[None], *embedded(params, tokens).values()])
    bias = np.concatenate([[0], *log_gains(tokens, gains).values()])
    for i in range(operator.depth):
        x = block(params[f"block_{i}"], x, None, bias, operator.heads)
    return norm(params["norm"], x[0])


def cross_attention(operator, params, names, tokens, pooled, gains):
    x, bias = embedded(params, tokens), log_gains(tokens, gains)
    empty = np.zeros((0, next(iter(pooled.values())).size))
    for i in range(operator.depth):
        x = {
            n: block(
                params[f"block_{n}_{i}"],
                x[n],
                np.concatenate([empty, *(x[o] for o in x if o != n)]),
                np.concatenate([[], *(bias[o] for o in x if o != n)]),
                operator.heads,
            )
            for n in x
        }
    parts = [gains[n] * norm(params[f"norm_{n}"], x[n]).mean(axis=0) for n in x]
    return np.mean(parts, axis=0)


def bottleneck(operator, params, names, tokens, pooled, gains):
    num, bias = operator.num_bottlenecks, log_gains(tokens, gains)
    shared = np.float64(params["bottleneck"])
    x = {n: np.concatenate([params[f"cls_{n}"][None], tokens[n]]) for n in tokens}
    for i in range(operator.depth):
        seen = {
            n: block(
                params[f"block_{n}_{i}"],
                np.concatenate([x[n], shared]),
                None,
                np.concatenate([[0], bias[n], np.zeros(num)]),
                operator.heads,
            )
            for n in x
        }
        shared = np.mean([gains[n] * seen[n][-num:] for n in x], axis=0)
        x = {n: seen[n][:-num] for n in x}
    return np.mean([gains[n] * norm(params[f"norm_{n}"], x[n][0]) for n in x], axis=0)


PLAIN = {
    "BottleneckFusion": bottleneck,
    "ConcatFusion": concat,
    "MeanFusion": mean,
    "CrossAttentionFusion": cross_attention,
    "FiLMFusion": film,
    "GatedFusion": gated,
    "LowRankFusion": low_rank,
    "SumFusion": total,
    "TransformerFusion": transformer,
}


def plain_rows(operator, variables, features, present, weights=None, dtype=np.float64):
    """The fused rows [B', F] of the examples with something present.

    Args:
        operator: a fusion operator.
        variables: its variables.
        features: name -> Features.
        present: Bool[B, M].
        weights: [B, M], > 0 where present, or None for the plain operator.
        dtype: of the features and gains, and so of the arithmetic.
    """
    names, rows = sorted(features), []
    for row in np.flatnonzero(np.any(present, axis=1)):
        here = [m for m in range(len(names)) if present[row, m]]
        gains = {
            names[m]: dtype(1 if weights is None else len(here) * weights[row, m]) for m in here
        }
        tokens, pooled = {}, {}
        for m in here:
            value = features[names[m]]
            pooled[names[m]] = dtype(value.pooled[row])
            some = pooled[names[m]][None] if value.tokens is None else dtype(value.tokens[row])
            tokens[names[m]] = some if value.token_mask is None else some[value.token_mask[row]]
        plain = PLAIN[type(operator).__name__]
        rows.append(plain(operator, variables.get("params", {}), names, tokens, pooled, gains))
    return np.stack(rows)
