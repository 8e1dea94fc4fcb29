#!/usr/bin/env python3
"""The picture of a move in the README: what a real run of the demo printed, line by line at the
pace of the run, as an SVG that needs no script.

    picture.py [target/demo/output.txt [docs/move.svg]]"""

import html
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Longest pause that is shown, seconds; waiting shows nothing.
PAUSE = 1.2
WIDTH, LINE, SIZE, TOP = 110, 17, 13, 44
# What the marks of the demo mean: progress, breach, decision, move.
COLOURS = {"#": "#7aa2f7", "!": "#f7768e", "*": "#9ece6a", ">": "#e0af68", "$": "#7aa2f7"}
SAID = re.compile(r"^\s*([0-9.]+)s (.) ")


def lines_of(text):
    """(seconds, mark, line) of each line, pauses cut short."""
    last, at, found = None, 0.0, []
    for line in text.rstrip().splitlines():
        said = SAID.match(line)
        if said:
            now = float(said[1])
            at += min(max(now - (now if last is None else last), 0.0), PAUSE)
            last = now
        elif line.strip():
            at += 0.15
        found.append((at, said[2] if said else " ", line[:WIDTH - 1] + "…" if len(line) > WIDTH else line))
    return found


def svg(lines):
    width, height = int(WIDTH * SIZE * 0.602) + 32, TOP + LINE * len(lines) + 20
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
           'aria-label="A redis moves from host h1 to host h2 while its client stays connected">',
           "<style>",
           f"text {{ font: {SIZE}px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; "
           "fill: #c0caf5; white-space: pre }",
           "@keyframes show { from { opacity: 0 } to { opacity: 1 } }",
           ".l { animation: show 1ms linear backwards }",
           "@media (prefers-reduced-motion: reduce) { .l { animation: none } }",
           "</style>",
           f'<rect width="{width}" height="{height}" rx="8" fill="#1a1b26"/>',
           *(f'<circle cx="{x}" cy="18" r="6" fill="{c}"/>'
             for x, c in ((20, "#f7768e"), (40, "#e0af68"), (60, "#9ece6a"))),
           f'<text x="{width / 2:.0f}" y="22" text-anchor="middle" opacity=".7">make demo</text>']
    for n, (at, mark, line) in enumerate(lines):
        if not line.strip():
            continue
        colour = f' fill="{COLOURS[mark]}" style="animation-delay:{at:.2f}s;fill:{COLOURS[mark]}"' \
            if mark in COLOURS else f' style="animation-delay:{at:.2f}s"'
        out.append(f'<text class="l" x="16" y="{TOP + LINE * (n + 1)}" xml:space="preserve"{colour}>'
                   f"{html.escape(line)}</text>")
    return "\n".join([*out, "</svg>", ""])


def main():
    source = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "target" / "demo" / "output.txt"
    target = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs" / "move.svg"
    if not source.exists():
        sys.exit(f"picture: {source} is not there; run \"make demo\" first")
    target.write_text(svg(lines_of(source.read_text())))
    print(f"{target}: {len(source.read_text().splitlines())} lines")


if __name__ == "__main__":
    main()
