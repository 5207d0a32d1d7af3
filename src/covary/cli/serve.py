"""The command `covary serve`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from covary.cli.console import print_json, stderr
from covary.cli.guard import GUARDED, Every, FalseStopRate, Keep, Policy, prepared
from covary.cli.options import Consent, Json, Machine, MaybeModel, Weights, grouped, settings
from covary.errors import CovaryError

LIMITS = "Limits"
KEY_VARIABLE, OPERATOR_VARIABLE = "COVARY_API_KEY", "COVARY_OPERATOR_KEY"


@grouped
def serve(
    *,
    detector: Annotated[Path, Argument(help="Folder written by `covary fit`.")],
    model: MaybeModel = None,
    weights: Weights = None,
    name: Annotated[str, Option("--name", help="Of the model, in URLs.")] = "detector",
    host: Annotated[str, Option("--host", help="Address to listen on; 0.0.0.0 = all.")] = "127.0.0.1",
    port: Annotated[int, Option("--port", min=0, max=65535, help="0 = any free one.")] = 8000,
    api_key_file: Annotated[
        Path | None, Option("--api-key-file", help=f"Clients must send the key in it; or set {KEY_VARIABLE}.")
    ] = None,
    operator_key_file: Annotated[
        Path | None,
        Option("--operator-key-file", help=f"Key for metrics, live page, acknowledging; or {OPERATOR_VARIABLE}."),
    ] = None,
    verdicts: Annotated[str, Option("--verdicts", help="shown or hidden: what clients see.")] = "shown",
    audit: Annotated[str | None, Option("--audit", help="File that gets one JSON line an event; - = stdout.")] = None,
    audit_failure: Annotated[
        str, Option("--audit-failure", help="Where it cannot be written: refuse requests, or continue and say so.")
    ] = "refuse",
    level: Annotated[
        float, Option("--level", help="Chance that the stream alarm is ever raised falsely, at most.")
    ] = 0.01,
    window: Annotated[
        int, Option("--window", min=0, help="Latest inputs looked at together, beside the verdict on each; 0 = none.")
    ] = 1000,
    max_batch: Annotated[int, Option("--max-batch", min=1, help="Inputs in a pass.", rich_help_panel=LIMITS)] = 64,
    max_wait_ms: Annotated[
        float, Option("--max-wait-ms", min=0, help="An input waits for company at most so long.",
                      rich_help_panel=LIMITS)
    ] = 2.0,
    max_bytes: Annotated[
        int, Option("--max-bytes", min=1, help="In a request's body.", rich_help_panel=LIMITS)
    ] = 16 * 2**20,
    max_inputs: Annotated[int, Option("--max-inputs", min=1, help="In a request.", rich_help_panel=LIMITS)] = 1024,
    max_requests: Annotated[
        int, Option("--max-requests", min=1, help="Open at a time; more get 429.", rich_help_panel=LIMITS)
    ] = 256,
    max_connections: Annotated[
        int, Option("--max-connections", min=1, help="Open at a time; more get 503.", rich_help_panel=LIMITS)
    ] = 512,
    max_connections_per_address: Annotated[
        int, Option("--max-connections-per-address", min=1, help="The same from one address.", rich_help_panel=LIMITS)
    ] = 256,
    every: Every = None,
    policy: Policy = "stop",
    false_stop_rate: FalseStopRate = None,
    keep: Keep = None,
    max_new_tokens: Annotated[
        int, Option("--max-new-tokens", min=1, help="Of one answer, at most.", rich_help_panel=GUARDED)
    ] = 1024,
    machine: Machine,
    consent: Consent,
    json: Json = False,
) -> None:  # fmt: skip
    """Serve a detector: the network's outputs and a verdict on every input, Open Inference Protocol V2 over HTTP.

    A language model answers as OpenAI's chat completions do, at `/v1/chat/completions`, under guard.

    **Examples**

    `covary serve detectors/resnet --trust-code`

    `covary serve detectors/assistant --name assistant --keep detectors/guard`

    `covary serve detectors/resnet --public-key team.pem.pub --host 0.0.0.0 --api-key-file key.txt --audit audit.jsonl`
    """
    from covary.detector import Detector
    from covary.serving.http import ServeSettings
    from covary.serving.http import serve as run

    chosen = ServeSettings(
        name=name, host=host, port=port, max_batch=max_batch, max_wait_ms=max_wait_ms, max_bytes=max_bytes,
        max_inputs=max_inputs, max_requests=max_requests, max_connections=max_connections,
        max_connections_per_address=max_connections_per_address, api_key=_key(api_key_file, KEY_VARIABLE),
        operator_key=_key(operator_key_file, OPERATOR_VARIABLE), verdicts=verdicts, audit=audit,
        audit_failure=audit_failure, level=level, window=window, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    fitted = Detector.load(detector, model, weights=weights, **settings(machine, consent))
    of_texts = fitted.settings.kind == "text"
    guard = prepared(fitted, keep, every=every, policy=policy, fpr=false_stop_rate, quiet=json) if of_texts else None
    if guard is not None and not guard.knows_conversations:
        stderr.print(
            "[yellow]warning[/]: most trusted texts did not go through the model's chat template, so every "
            "conversation will look odd; trust texts with messages"
        )
    if not chosen.loopback and chosen.api_key is None:
        stderr.print("[yellow]warning[/]: other machines can reach this service, and it asks for no API key")
    if chosen.verdicts == "hidden" and chosen.operator_key is None:
        stderr.print(
            "[yellow]warning[/]: whoever may ask the network may read verdicts at /metrics and /live.json, "
            "unless --operator-key-file names another key"
        )

    def print_address(address: str) -> None:
        places = {"model": f"{address}/v2/models/{name}", "metrics": f"{address}/metrics"}
        if of_texts:
            places = {"chat": f"{address}/v1/chat/completions", "model": name, "metrics": f"{address}/metrics"}
        if json:
            print_json({"address": address, **places})
            sys.stdout.flush()
        else:
            told = ", ".join(f"{what} {place}" for what, place in places.items())
            stderr.print(told if of_texts else f"live page {address}/, {told}")

    run(fitted, chosen, print_address, guard)


def _key(file: Path | None, variable: str) -> str | None:
    if file is None:
        return os.environ.get(variable)
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise CovaryError(
            f"the key file {file} cannot be read ({problem})", "one line with the key", "check path and rights"
        ) from None
    if not key:
        raise CovaryError(f"the key file {file} is empty", "one line with the key")
    return key
