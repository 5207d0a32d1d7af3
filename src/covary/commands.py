"""Commands on what is finished: `verify`, `sign`, `keygen`, `receipts`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option, Typer

from covary.console import print_differences, print_json, print_record
from covary.errors import CovaryError
from covary.options import Json

Folder = Annotated[Path, Argument(help="RUN or detector.")]

receipts = Typer(name="receipts", help="Put receipts together, or hash a record.", no_args_is_help=True)


def verify(
    folder: Annotated[Path, Argument(help="RUN, detector, or a bundle of receipts.")],
    public_key: Annotated[Path | None, Option("--public-key", help="It must be signed with the key of this.")] = None,
    sources: Annotated[
        bool, Option("--sources", help="Open network and data again, which runs the code they name.")
    ] = False,
    json: Json = False,
) -> None:
    """Compute a receipt again and name each thing that differs; exit 1 where something does.

    **Examples**

    `covary verify runs/a`

    `covary verify detectors/resnet --public-key team.pem.pub`

    `covary verify runs/a --sources`
    """
    from covary.signatures import read_public
    from covary.verify import told

    key = None if public_key is None else read_public(public_key)
    if folder.is_file():
        from covary.bundle import bundle_told

        found = bundle_told(folder, key)
    else:
        found = told(folder, key)
        if sources:
            from covary.sources import source_differences

            found["differences"] += [{"name": name, "what": what} for name, what in source_differences(folder)]
    found["intact"] = not found["differences"]
    print_json(found) if json else print_differences(found)
    raise Exit(int(not found["intact"]))


def sign(
    folder: Folder,
    key: Annotated[Path, Option("--key", help="Ed25519 private key, PEM; `covary keygen` makes one.")],
    json: Json = False,
) -> None:
    """Sign the receipt of an intact RUN or detector with Ed25519; writes signature.json into it.

    **Example**

    `covary sign runs/a --key team.pem`
    """
    from covary import signatures
    from covary import verify as verifying

    signature = verifying.sign(folder, key)
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
    from covary.signatures import make_keys, read_public, short

    public = make_keys(key)
    record = {"private": str(key), "public": str(public), "key": short(read_public(public))}
    print_json(record) if json else print_record(record)


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
    from covary.bundle import merge as merge_receipts

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
    from covary.fingerprints import digest_json
    from covary.receipts import strict_json

    try:
        digest = digest_json(strict_json(record.read_bytes()))
    except (ValueError, RecursionError) as problem:
        raise CovaryError(f"{record} is not readable JSON ({problem})", "one JSON document, no key twice") from None
    print_json({"record": str(record), "sha256": digest}) if json else print(digest)


def add_to(app: Typer) -> None:
    """Adds these commands to the command line."""
    for command in (verify, sign, keygen):
        app.command()(command)
    app.add_typer(receipts)
