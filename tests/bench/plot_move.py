#!/usr/bin/env python3
"""Draws the history of a feature before and after a move, from a recording of the cluster.

    tests/bench/plot_move.py [RECORDING [SVG]]

RECORDING: what tests/cluster/record.py writes (default: the one beside this file). SVG: default
docs/history.svg. The move is where the history has its largest gap: the freeze, which nobody metered."""

import gzip
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WIDTH, LEFT, RIGHT, TOP, PANEL, BETWEEN = 760, 64, 16, 34, 92, 26
PANELS = [("cpu", "CPU", "%", 1), ("memory", "Memory", "MiB", 1),
          ("net_rx", "Net in", "KiB/s", 1 / 1024)]
STEP_MS = 6_000


def load(path):
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else open(path)
    with opened as f:
        return json.load(f)["cache"]


def gap(points):
    """(milliseconds without a point, index of the first point after it)"""
    return max((b["at_ms"] - a["at_ms"] - b["interval_s"] * 1000, n + 1)
               for n, (a, b) in enumerate(zip(points, points[1:])))


def steps(points, column):
    """Means over STEP_MS, so that the curve can be read."""
    run, out = [], []
    for p in points:
        if run and p["at_ms"] - run[0]["at_ms"] >= STEP_MS:
            out.append(run)
            run = []
        run.append(p)
    out.append(run)
    return [((r[0]["at_ms"] - r[0]["interval_s"] * 1000 + r[-1]["at_ms"]) / 2,
             sum(p[column] * p["interval_s"] for p in r) / sum(p["interval_s"] for p in r))
            for r in out if r]


def svg(points):
    lost_ms, at = gap(points)
    begin, end = points[0]["at_ms"], points[-1]["at_ms"]
    moved = points[at]["at_ms"] - points[at]["interval_s"] * 1000
    x = lambda t: LEFT + (t - begin) / (end - begin) * (WIDTH - LEFT - RIGHT)
    height = TOP + len(PANELS) * (PANEL + BETWEEN) + 8
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
           'font-family="sans-serif" font-size="12">',
           f'<title>A redis before and after its move from host h1 to host h2, '
           f'{lost_ms:.0f} ms of it not metered</title>',
           f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
           f'<text x="{x(moved) - 8:.1f}" y="18" text-anchor="end" fill="#555">g1 on host h1</text>',
           f'<text x="{x(moved) + 8:.1f}" y="18" fill="#555">g2 on host h2</text>']
    for n, (column, name, unit, factor) in enumerate(PANELS):
        base = TOP + n * (PANEL + BETWEEN) + PANEL
        curves = [steps(part, column) for part in (points[:at], points[at:])]
        most = max(v for c in curves for _, v in c) * factor * 1.1 or 1
        y = lambda v: base - v * factor / most * PANEL
        out.append(f'<path d="M{LEFT} {base - PANEL}V{base}H{WIDTH - RIGHT}" fill="none" stroke="#999"/>')
        out.append(f'<text x="{LEFT - 6}" y="{base - PANEL + 10}" text-anchor="end">{most:.0f}</text>')
        out.append(f'<text x="{LEFT - 6}" y="{base}" text-anchor="end">0</text>')
        out.append(f'<text x="{LEFT + 6}" y="{base - PANEL + 10}" font-weight="bold">{name}, {unit}</text>')
        for curve, colour in zip(curves, ("#0b6e99", "#b8530a")):
            path = "L".join(f"{x(t):.1f} {y(v):.1f}" for t, v in curve)
            out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    foot = TOP + len(PANELS) * (PANEL + BETWEEN) - BETWEEN
    out.append(f'<path d="M{x(moved):.1f} {TOP - 10}V{foot}" stroke="#c00" stroke-dasharray="4 3"/>')
    for minute in range(int((end - begin) / 60_000) + 1):
        t = begin + minute * 60_000
        out.append(f'<text x="{x(t):.1f}" y="{foot + 16}" text-anchor="middle" fill="#555">{minute}</text>')
    out.append(f'<text x="{WIDTH - RIGHT}" y="{foot + 30}" text-anchor="end" fill="#555">minutes</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main():
    recording = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "recording.json.gz"
    target = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs" / "history.svg"
    points = load(recording)
    target.write_text(svg(points))
    print(f"{target}: {len(points)} points, {gap(points)[0]:.0f} ms not metered at the move")


if __name__ == "__main__":
    main()
