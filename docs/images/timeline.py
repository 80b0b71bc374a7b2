#!/usr/bin/env python3
"""Draws a part of a timeline, as the key `trace` has the engine write it, as an SVG.

    timeline.py TIMELINE.json FROM_MS TO_MS > timeline.svg

Perfetto and chrome://tracing show all of it; this is for a picture in a document.
"""
import json
import sys
from html import escape

LABEL, WIDTH, ROW, TOP = 150, 1050, 18, 46
COLORS = {
    "read": "#4e79a7", "swap_in": "#4e79a7",
    "update": "#59a14f",
    "write": "#e15759", "swap_out": "#e15759",
    "prepare": "#76b7b2", "put back": "#edc948",
    "wait": "#bab0ac", "commit": "#b07aa1",
}
LEGEND = ["read", "prepare", "update", "put back", "write", "wait", "commit"]


def color(name):
    return COLORS.get(name) or COLORS["wait" if name.startswith("wait") else "commit"]


def draw(events, start, end):
    labels, rows = {}, {}
    for event in events:
        row = event["pid"], event["tid"]
        if event["ph"] == "M":
            labels[event["name"], row] = event["args"]["name"]
        elif event["ts"] < end and event["ts"] + event["dur"] > start:
            rows.setdefault(row, []).append(event)
    scale = WIDTH / (end - start)
    body, y, group = [], TOP, None
    for row in sorted(rows):
        if row[0] != group:
            group = row[0]
            title = labels["process_name", row].split(": ")[1]
            y += 20
            body.append(f'<text x="4" y="{y - 5}" font-weight="bold">{escape(title)}</text>')
        body.append(f'<text x="14" y="{y + 13}">{escape(labels["thread_name", row])}</text>')
        for event in rows[row]:
            left = max(event["ts"], start)
            right = min(event["ts"] + event["dur"], end)
            x, width = LABEL + (left - start) * scale, max((right - left) * scale, 0.6)
            body.append(
                f'<rect x="{x:.1f}" y="{y + 1}" width="{width:.1f}" height="{ROW - 3}"'
                f' fill="{color(event["name"])}"/>'
            )
        y += ROW
    for step in range(11):
        x = LABEL + WIDTH * step / 10
        body.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{y}" stroke="#0002"/>')
        time = (start + (end - start) * step / 10) / 1000
        body.append(f'<text x="{x}" y="{TOP - 6}" text-anchor="middle">{time:.1f} ms</text>')
    for index, name in enumerate(LEGEND):
        x = LABEL + index * 110
        body.append(f'<rect x="{x}" y="8" width="12" height="12" fill="{color(name)}"/>')
        body.append(f'<text x="{x + 17}" y="18">{name}</text>')
    width, height = LABEL + WIDTH + 40, y + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(body)}</svg>'
    )


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        timeline = json.load(file)
    print(draw(timeline, float(sys.argv[2]) * 1000, float(sys.argv[3]) * 1000))
