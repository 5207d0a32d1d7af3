"""Commands on what is finished: `verify`, `sign`, `keygen`, `receipts`, `compare`, `gate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option, Typer

from covary.cli.console import print_differences, print_gate, print_json, print_record, print_warning
from covary.cli.options import Force, Json, TrustCode
from covary.cli.verbosity import App
from covary.errors import CovaryError

# The file that tells a pile.
PILE = "pile.json"
ById = Annotated[bool, Option("--by-id", help="Inputs with the same id are the same input.")]
Folder = Annotated[Path, Argument(help="RUN or detector.")]

receipts = App(name="receipts", help="Put receipts together, or hash a record.", no_args_is_help=True)


def verify(
    folder: Annotated[Path, Argument(help="RUN, detector, pile, or a bundle of receipts.")],
    public_key: Annotated[Path | None, Option("--public-key", help="It must be signed with the key of this.")] = None,
    sources: Annotated[
        bool, Option("--sources", help="Open network and data again, which runs the code they name.")
    ] = False,
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Compute a receipt again and name each thing that differs; exit 1 where something does.

    **Examples**

    `covary verify runs/a`

    `covary verify detectors/resnet --public-key team.pem.pub`

    `covary verify runs/a --sources`
    """
    from covary.storage.signatures import read_public
    from covary.storage.verify import verify_folder

    key = None if public_key is None else read_public(public_key)
    if folder.is_file():
        from covary.storage.bundle import verify_bundle

        found = verify_bundle(folder, key)
    else:
        found = verify_folder(folder, key)
        if sources:
            if (folder / PILE).is_file():
                from covary.serving.pile.again import pile_source_differences as source_differences
            else:
                from covary.runs.folder.sources import source_differences
            more = source_differences(folder, trust_code=trust_code)
            found["differences"] += [{"name": name, "what": what} for name, what in more]
    found["intact"] = not found["differences"]
    print_json(found) if json else print_differences(found)
    raise Exit(int(not found["intact"]))


def sign(
    folder: Annotated[Path, Argument(help="RUN, detector, pile, or a bundle of receipts.")],
    key: Annotated[Path, Option("--key", help="Ed25519 private key, PEM; `covary keygen` makes one.")],
    json: Json = False,
) -> None:
    """Sign the receipt of an intact folder with Ed25519 (into signature.json), or a bundle as a whole (into itself).

    **Examples**

    `covary sign runs/a --key team.pem`

    `covary sign bundle.json --key team.pem`
    """
    from covary.storage import bundle, signatures
    from covary.storage import verify as verifying

    signature = bundle.sign_bundle(folder, key) if folder.is_file() else verifying.sign(folder, key)
    record = {"folder": str(folder), "receipt": signature["receipt"], "key": signatures.short(signature["public_key"])}
    print_json(record) if json else print_record(record)


def keygen(
    key: Annotated[Path, Argument(help="Private key to write; the public one goes beside it as KEY.pub.")],
    json: Json = False,
) -> None:
    """Make an Ed25519 key pair for `covary sign` and `covary verify --public-key`.

    **Example**

    `covary keygen team.pem`
    """
    from covary.storage.signatures import make_keys, read_public, short

    public = make_keys(key)
    record = {"private": str(key), "public": str(public), "key": short(read_public(public))}
    print_json(record) if json else print_record(record)


def compare(
    before: Annotated[Path, Argument(help="RUN folder, or a finished pile.")],
    after: Annotated[Path, Argument(help="RUN folder, or a finished pile.")],
    by_id: ById = False,
    out: Annotated[Path | None, Option("--out", help="Write a page, too: FILE.html.")] = None,
    json: Json = False,
) -> None:
    """Tell what changed between two RUNs: two networks, or two days.

    **Examples**

    `covary compare runs/monday runs/tuesday`

    `covary compare runs/old-model runs/new-model --out changes.html`
    """
    from covary.cli.compare import print_comparison, write_page
    from covary.runs.compare import compare as compare_runs

    found = compare_runs(before, after, by_id=by_id)
    if out is not None:
        write_page(found, out)
    print_json(found) if json else print_comparison(found)


def gate(
    run: Annotated[Path, Argument(help="RUN folder, or a finished pile.")],
    max_flag_rate: Annotated[float | None, Option("--max-flag-rate", help="Share of inputs flagged.")] = None,
    max_flagged: Annotated[int | None, Option("--max-flagged", help="Number of inputs flagged.")] = None,
    max_fpr: Annotated[float | None, Option("--max-fpr", help="Share of clean inputs flagged; needs truth.")] = None,
    min_tpr: Annotated[float | None, Option("--min-tpr", help="Share of anomalous ones flagged; needs truth.")] = None,
    min_auroc: Annotated[float | None, Option("--min-auroc", help="AUROC; needs truth.")] = None,
    min_accuracy: Annotated[float | None, Option("--min-accuracy", help="On clean inputs; needs truth, y.")] = None,
    against: Annotated[Path | None, Option("--against", help="RUN than which it must not flag more.")] = None,
    level: Annotated[float, Option("--level", help="Of that test, one-sided.")] = 0.01,
    by_id: ById = False,
    public_key: Annotated[Path | None, Option("--public-key", help="It must be signed with the key of this.")] = None,
    no_warnings: Annotated[bool, Option("--no-warnings", help="What the check warned of fails.")] = False,
    junit: Annotated[Path | None, Option("--junit", help="Write JUnit XML, too.")] = None,
    sarif: Annotated[Path | None, Option("--sarif", help="Write SARIF 2.1.0, too.")] = None,
    json: Json = False,
) -> None:
    """Decide a release: exit 0 where a RUN keeps every rule, 1 where it breaks one, 2 where that can't be told.

    **Examples**

    `covary gate runs/a --max-flag-rate 0.02 --junit gate.xml`

    `covary gate runs/new --against runs/old --public-key team.pem.pub`
    """
    from covary.runs.release.gate import gate as passes
    from covary.runs.release.junit import write_junit
    from covary.runs.release.sarif import write_sarif
    from covary.storage.signatures import read_public

    rules = {
        "max_flag_rate": max_flag_rate, "max_flagged": max_flagged, "max_fpr": max_fpr, "min_tpr": min_tpr,
        "min_auroc": min_auroc, "min_accuracy": min_accuracy,
    }  # fmt: skip
    found = passes(
        run, {name: limit for name, limit in rules.items() if limit is not None}, against=against, level=level,
        by_id=by_id, public_key=None if public_key is None else read_public(public_key), no_warnings=no_warnings,
    )  # fmt: skip
    if junit is not None:
        write_junit(found, junit)
    if sarif is not None:
        write_sarif(found, sarif)
    print_json(found) if json else print_gate(found)
    raise Exit(int(not found["passed"]))


@receipts.command()
def merge(
    paths: Annotated[list[Path], Argument(help="RUNs, detectors and bundles.")],
    out: Annotated[Path, Option("--out", help="Bundle to write.")],
    json: Json = False,
) -> None:
    """Put receipts of several RUNs, detectors and bundles into one bundle: the same bytes in any order.

    **Example**

    `covary receipts merge runs/a runs/b detectors/resnet --out bundle.json`
    """
    from covary.storage.bundle import merge as merge_receipts

    record = merge_receipts(paths, out)
    print_json(record) if json else print_record(record)


@receipts.command(name="hash")
def hash_record(
    record: Annotated[Path, Argument(help="Any JSON document, in any order of keys and spacing.")], json: Json = False
) -> None:
    """Print the SHA-256 of a record's canonical JSON: keys sorted, no spaces, UTF-8 unescaped.

    **Example**

    `covary receipts hash record.json`
    """
    from covary.storage.fingerprints import digest_json
    from covary.storage.receipts import strict_json

    try:
        digest = digest_json(strict_json(record.read_bytes()))
    except (ValueError, RecursionError) as problem:
        raise CovaryError(f"{record} is not readable JSON ({problem})", "one JSON document, no key twice") from None
    print_json({"record": str(record), "sha256": digest}) if json else print(digest)


def mechanisms(
    run: Annotated[Path, Argument(help="RUN folder, or a finished pile.")],
    least: Annotated[int | None, Option("--least", min=2, help="Inputs that make a mechanism.")] = None,
    detector: Annotated[Path | None, Option("--detector", help="Of a pile, where it has moved since.")] = None,
    trust_code: TrustCode = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Show the cards of a RUN's pile, and cluster its flagged inputs by how their explanation fails.

    Writes mechanisms.json and the report. Cards are there where the pile was judged together.

    **Examples**

    `covary mechanisms runs/a`

    `covary mechanisms runs/a --least 20 --json`
    """
    from covary.runs.pile.cards import FILE, in_summary, read_cards
    from covary.runs.report.card_section import line as card_line
    from covary.runs.report.mechanism_section import headline, line
    from covary.storage.verify import in_words

    if (run / PILE).is_file():
        from covary.serving.pile.again import find_pile_mechanisms

        found = find_pile_mechanisms(run, least, detector=detector, trust_code=trust_code, force=force)
    else:
        from covary.runs.pile.mechanisms import find_mechanisms

        found = find_mechanisms(run, least, trust_code=trust_code, force=force)
    if found["receipt"] != "intact":
        print_warning(f"{run} {in_words(found['receipt'])}")
    cards = in_summary(read_cards(run)) if (run / FILE).is_file() else []
    if json:
        print_json({**found, "cards": cards})
        return
    for card in cards:
        print(card_line(card))
    print(headline(found))
    for cluster in found["clusters"]:
        print(line(cluster))


def add_to(app: Typer) -> None:
    """Adds these commands to the command line."""
    for command in (verify, sign, keygen, compare, gate, mechanisms):
        app.command()(command)
    app.add_typer(receipts)
