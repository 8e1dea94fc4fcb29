#!/usr/bin/env python3
"""How few bytes per sample a lossless code can take on the Alibaba traces: the entropy of what is
left of each column after it was foretold from its own past and from the other columns, with
coefficients fitted to the very values that they foretell, for which no code would pay.

    DROVER_TRACES=DIR tests/bench/entropy.py
"""

import glob
import gzip
import math
import os
import random
import sys

CHUNK = 2160  # six hours of 10 s, as a packed partition has them
NEIGHBOURS = 4


def solve(rows, values):
    """Least squares by the normal equations, Gauss-Jordan."""
    n = len(rows[0])
    m = [[sum(r[i] * r[j] for r in rows) + (1e-6 if i == j else 0) for j in range(n)]
         + [sum(r[i] * v for r, v in zip(rows, values))] for i in range(n)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(m[r][i]))
        m[i], m[pivot] = m[pivot], m[i]
        for r in range(n):
            if r != i:
                f = m[r][i] / m[i][i]
                m[r] = [a - f * b for a, b in zip(m[r], m[i])]
    return [m[i][n] / m[i][i] for i in range(n)]


def entropy(values):
    """Bits per value by Kozachenko and Leonenko's estimate, which assumes no distribution.
    Whole numbers are spread over their unit, so that equal ones count as what they save."""
    x = sorted(v + random.random() - 0.5 for v in values)
    k, n = NEIGHBOURS, len(x)
    logs = 0.0
    for i in range(n):
        near = sorted(abs(x[j] - x[i]) for j in range(max(0, i - k), min(n, i + k + 1)) if j != i)
        logs += math.log(2 * max(near[k - 1], 1e-12))
    psi = lambda m: -0.5772156649015329 + sum(1 / i for i in range(1, m))
    return (logs / n + psi(n) - psi(k)) / math.log(2)


def differences(rows, c):
    return [b[c] - a[c] for a, b in zip(rows, rows[1:])]


def residuals(rows, c, past):
    """From `past` values of the column, the others' last two, and this step's of those before."""
    others = [j for j in range(len(rows[0])) if j != c]
    inputs = [[rows[t - i][c] / 1e4 for i in range(1, past + 1)] + [1.0]
              + [rows[t][j] / 1e4 for j in range(c)]
              + [rows[t - i][j] / 1e4 for i in (1, 2) for j in others]
              for t in range(past, len(rows))]
    values = [r[c] for r in rows[past:]]
    weights = solve(inputs, values)
    return [v - sum(a * b for a, b in zip(weights, i)) for i, v in zip(inputs, values)]


def main():
    paths = sorted(glob.glob(os.path.join(os.environ.get("DROVER_TRACES", ""), "alibaba-2018-*")))
    if not paths:
        print("SKIPPED: no alibaba-2018-* in DROVER_TRACES")
        return
    random.seed(1)
    names, chunks = [], []
    for path in paths:
        with gzip.open(path, "rt") as f:
            names = f.readline().strip().split(",")
            rows = [[round(float(v) * 1e4) for v in line.split(",")] for line in f]
        chunks += [rows[i:i + CHUNK] for i in range(0, len(rows) - CHUNK + 1, CHUNK)]
    models = {"differences": differences, "4 values, others": lambda r, c: residuals(r, c, 4),
              "8 values, others": lambda r, c: residuals(r, c, 8)}
    best = [math.inf] * len(names)
    print(f"{len(chunks)} chunks, bits per value: {', '.join(names)}")
    for model, left in models.items():
        bits = [sum(entropy(left(rows, c)) for rows in chunks) / len(chunks)
                for c in range(len(names))]
        best = [min(a, b) for a, b in zip(best, bits)]
        print(f"{model:17}", *(f"{b:6.2f}" for b in bits),
              f"  {sum(bits) / len(bits) / 8:.3f} bytes")
    print(f"{'best of each':17}", *(f"{b:6.2f}" for b in best),
          f"  {sum(best) / len(best) / 8:.3f} bytes")


if __name__ == "__main__":
    sys.exit(main())
