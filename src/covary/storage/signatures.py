"""Ed25519 signatures (RFC 8032) over a receipt's bytes, with keys in the PEM files that openssl writes too."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from pathlib import Path
from typing import Any

from covary.errors import CovaryError, missing_extra

ALGORITHM = "Ed25519"
KEYS = {"algorithm", "public_key", "receipt", "signature"}
PRIVATE, PUBLIC = "an Ed25519 private key as PEM", "an Ed25519 public key as PEM"


def make_keys(private: Path) -> Path:
    """Writes a new private key, readable by its owner alone, and `<name>.pub` beside it; returns the latter's path.

    Raises:
        CovaryError: one of the files is there already, or cannot be written.
    """
    ed25519, serialization = _cryptography()
    public = private.with_name(private.name + ".pub")
    for path in (private, public):
        if path.exists():
            raise CovaryError(f"{path} exists", "a new file", "choose another name; keys are never overwritten")
    key = ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    known = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    private.parent.mkdir(parents=True, exist_ok=True)
    # Created with its rights, not given them afterwards: at no moment can another user read it.
    with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    public.write_bytes(known)
    return public


def sign_bytes(message: bytes, key_file: Path) -> dict[str, str]:
    """The signature of `message` with the public key that checks it, as plain values in hex and base64.

    Raises:
        CovaryError: no such key file, or one that holds no unencrypted Ed25519 private key.
    """
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_private_key(_read(key_file, PRIVATE), password=None)
    except (ValueError, TypeError) as problem:
        raise CovaryError(f"{key_file} cannot be read as a key", PRIVATE, "covary keygen KEY makes one") from problem
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise CovaryError(f"{key_file} holds another kind of key", PRIVATE, "covary keygen KEY makes one")
    return {
        "algorithm": ALGORITHM,
        "public_key": _text(_raw(key.public_key(), serialization)),
        "receipt": hashlib.sha256(message).hexdigest(),
        "signature": _text(key.sign(message)),
    }


def read_public(path: Path) -> str:
    """The public key in a PEM file, as base64 of its 32 bytes."""
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_public_key(_read(path, PUBLIC))
    except ValueError as problem:
        raise CovaryError(f"{path} cannot be read as a key", PUBLIC, "pass the .pub file") from problem
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise CovaryError(f"{path} holds another kind of key", PUBLIC, "pass the .pub file")
    return _text(_raw(key, serialization))


def trouble(signature: Any, message: bytes, public_key: str | None = None) -> str | None:
    """What is wrong with a signature of `message`, in a few words; None where it holds.

    Without `public_key` the key that the signature brings along is used: that tells a damaged signature from a whole
    one, not whose it is. Without the package `cryptography` only the form and the receipt's hash are compared.

    Raises:
        CovaryError: `public_key` is given and `cryptography` is not installed.
    """
    if not isinstance(signature, dict) or set(signature) != KEYS or signature["algorithm"] != ALGORITHM:
        return "it is no signature of covary's"
    if signature["receipt"] != hashlib.sha256(message).hexdigest():
        return "it signs another receipt"
    if public_key is not None and signature["public_key"] != public_key:
        return f"it was made with the key {short(signature['public_key'])}, not with {short(public_key)}"
    try:
        ed25519, _ = _cryptography()
    except CovaryError:
        if public_key is not None:
            raise
        return None
    from cryptography.exceptions import InvalidSignature

    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(_bytes(signature["public_key"]))
        key.verify(_bytes(signature["signature"]), message)
    except (InvalidSignature, ValueError, TypeError, AttributeError):
        return "it does not fit key and receipt"
    return None


def short(public_key: Any) -> str:
    """A key's name for people: the first 16 hexadecimal digits of the sha256 of its 32 bytes."""
    try:
        return hashlib.sha256(_bytes(public_key)).hexdigest()[:16]
    except (ValueError, TypeError, AttributeError):
        return "of unknown form"


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise missing_extra("cryptography", "sign") from None
    return ed25519, serialization


def _raw(public: Any, serialization: Any) -> bytes:
    return public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise CovaryError(f"{path} cannot be read ({problem.strerror})", what, "check the path") from problem


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _bytes(text: str) -> bytes:
    content = base64.b64decode(text.encode(), validate=True)
    # Base64 leaves bits of its last letter unused: two texts could stand for the same bytes.
    if _text(content) != text:
        raise binascii.Error("not the usual base64")
    return content
