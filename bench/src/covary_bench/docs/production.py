"""Tables of docs/production.md, from the records of the studies of the service."""

from __future__ import annotations

from typing import Any

ROUNDS = {
    "bare": "the bare network behind the same server",
    "service": "the service",
    "service_with_bad_requests": "the service, with {bad:,} bad requests mixed in",
}
CLIENTS = {
    "one request each of 1024 descriptors": "one request a connection, 1,024 descriptors",
    "one request each": "one request a connection, beside slow ones",
    "kept": "64 kept connections for a minute, beside slow ones",
}
SLOW = {
    "idle": "connections that send nothing",
    "head": "heads, a byte a second",
    "body": "bodies, a byte a second",
    "unread": "answers that are not read",
}
HARM = ("code", "detector", "detector sealed", "run", "run sealed", "pile", "bits")
HEAD = "| tried | how often | what happened |\n| --- | --- | --- |\n"


def load(record: dict[str, Any]) -> str:
    """Markdown: one row a round of closed-loop clients."""
    columns = ["", "requests", "lost", "other than 200", "p50", "p99", "load of the machine"]
    lines = [_row(columns), "| --- " * len(columns) + "|"]
    for name, title in ROUNDS.items():
        own, times = record[name], []
        for p in ("p50", "p99"):
            ratio = f" ({record[f'{p}_ratio_to_bare']:.1f} times)" if name == "service" else ""
            times.append(f"{own[f'{p}_ms'] / 1000:.2f} s{ratio}")
        title = title.format(bad=sum(own.get("bad", {}).values()))
        others = sum(n for status, n in own["statuses"].items() if status != "200")
        first, last = own["load_average"]
        lines.append(_row([title, f"{own['requests']:,}", own["lost"], others, *times, f"{first} to {last}"]))
    return "\n".join(lines) + "\n"


def harm(record: dict[str, Any]) -> str:
    """Markdown: what was tried with folders, piles and files, how often, what happened."""
    rows = []
    for own in (record[name] for name in HARM if name in record):
        happened = ", ".join(f"{what}: {n:,}" for what, n in own["happened"].items())
        rows.append([own["tried"], f"{own['how_often']:,}", happened])
    return HEAD + "\n".join(map(_row, rows)) + "\n"


def attacks(record: dict[str, Any]) -> str:
    """Markdown: what was tried against the service, how often, what happened."""
    rows = []
    for name, title in CLIENTS.items():
        if own := record.get(name):
            rows.append([title, f"{own['requests']:,}", _clients(own)])
    slow = [own["slow"] for name in ("one request each", "kept") if (own := record.get(name))]
    if slow:
        counts = {kind: sum(one.get(kind, 0) for one in slow) for kind in SLOW}
        tried = ", ".join(f"{counts[kind]:,} {title}" for kind, title in SLOW.items())
        answered = sum(one.get(f"{kind}: 408", 0) for one in slow for kind in ("head", "body"))
        happened = f"{answered:,} answered with 408, the others closed"
        rows.append([f"the slow ones beside them: {tried}", f"{sum(counts.values()):,}", happened])
    if own := record.get("half heads of 200 descriptors"):
        happened = f"a client got in {own['healthy']} of {own['looks']} times in 15 s; at most "
        happened += f"{own['descriptors_most']} descriptors, {own['descriptors_after']} after; "
        happened += f"a log of {own['log_bytes']} bytes"
        rows.append(["half heads and silent connections, 200 descriptors", own["half_heads"], happened])
    if own := record.get("slow bodies"):
        happened = f"{own['requests']} requests beside them: {own['lost']} lost, {own['most_ms']:.0f} ms at most"
        rows.append([f"one-byte bodies, `--max-requests {own['bodies']}`", own["bodies"], happened])
    return HEAD + "".join(f"{_row(row)}\n" for row in rows)


def _clients(own: dict[str, Any]) -> str:
    statuses = ", ".join(f"{n:,} answers of {status}" for status, n in own["statuses"].items())
    files, memory = own["descriptors"], own["mebibytes"]
    return (
        f"{own['lost']} lost, {statuses}; p50 {own['p50_ms']:.0f} ms, p99 {own['p99_ms']:.0f} ms; descriptors "
        f"{files['before']} before, {files['most']} at most, {files['after']} after; memory "
        f"{memory['before']} MiB before, {memory['half in']} half in, {memory['after']} after; "
        f"{own['tracebacks']} tracebacks"
    )


def _row(cells: list[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def bad_requests(record: dict[str, Any]) -> str:
    """Markdown: one row."""
    tried = "bad requests by a seeded generator: garbage, broken heads, wrong lengths, hosts and keys of others, "
    tried += "web pages', giant shapes, texts among numbers, cut off anywhere"
    refused = sum(n for status, n in record["statuses"].items() if status.startswith("4"))
    happened = f"{record['server_errors']} answers of 5xx, {record['tracebacks']} tracebacks; {refused:,} of 4xx, "
    happened += f"{record['statuses'].get('200', 0)} of 200 (not bad enough)"
    return f"{HEAD}| {tried} | {record['requests']:,} | {happened} |\n"
