"""The converted tiny Llama against an independent forward pass of the file's own arrays in NumPy."""

from __future__ import annotations

import struct

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the extra `language` is not installed")

from covary.errors import CovaryError
from covary.text.completions import completed
from covary.text.models.pretrained import load_language_model
from covary.text.records import read_texts
from covary_bench.texts.tiny_llama import FILES, convert, data_folder

HERE = all((data_folder() / name).is_file() for name in FILES)
needs_data = pytest.mark.skipif(not HERE, reason=f"no {FILES[0]} in $COVARY_DATA/text: the real model was not tried")
PROMPTS = ["Once upon a time", "The little dog", "One day, a girl named Lily"]
LENGTH = 60


class Oracle:
    """llama2.c's forward pass, one position at a time, on the arrays as they lie in the file."""

    def __init__(self, path):
        raw = path.read_bytes()
        self.d, self.h, self.n, self.heads, self.kv, self.v, self.t = struct.unpack("7i", raw[:28])
        flat, at = np.frombuffer(raw, "<f4", offset=28).astype(np.float64), 0
        head = self.d // self.heads
        for name, shape in (
            ("emb", (self.v, self.d)), ("n1", (self.n, self.d)), ("q", (self.n, self.d, self.d)),
            ("k", (self.n, head * self.kv, self.d)), ("val", (self.n, head * self.kv, self.d)),
            ("o", (self.n, self.d, self.d)), ("n2", (self.n, self.d)), ("w1", (self.n, self.h, self.d)),
            ("w2", (self.n, self.d, self.h)), ("w3", (self.n, self.h, self.d)), ("nf", (self.d,)),
        ):  # fmt: skip
            size = int(np.prod(shape))
            setattr(self, name, flat[at : at + size].reshape(shape))
            at += size

    def logits(self, ids):
        """After every position; none sees what comes later."""
        head, group = self.d // self.heads, self.heads // self.kv
        found = []
        keys, values = [[] for _ in range(self.n)], [[] for _ in range(self.n)]
        for t, token in enumerate(ids):
            x = self.emb[token].copy()
            angle = t * 10000.0 ** (-np.arange(0, head, 2) / head)
            for layer in range(self.n):
                a = self.norm(x, self.n1[layer])
                q = self.turn((self.q[layer] @ a).reshape(self.heads, head), angle)
                keys[layer].append(self.turn((self.k[layer] @ a).reshape(self.kv, head), angle))
                values[layer].append((self.val[layer] @ a).reshape(self.kv, head))
                mixed = []
                for i in range(self.heads):
                    scores = np.array([key[i // group] @ q[i] for key in keys[layer]]) / np.sqrt(head)
                    weights = np.exp(scores - scores.max())
                    weights /= weights.sum()
                    mixed.append(sum(w * value[i // group] for w, value in zip(weights, values[layer], strict=True)))
                x += self.o[layer] @ np.concatenate(mixed)
                a = self.norm(x, self.n2[layer])
                gate = self.w1[layer] @ a
                x += self.w2[layer] @ (gate / (1 + np.exp(-gate)) * (self.w3[layer] @ a))
            found.append(self.emb @ self.norm(x, self.nf))
        return np.stack(found)

    @staticmethod
    def norm(x, weight):
        return x / np.sqrt((x * x).mean() + 1e-5) * weight

    @staticmethod
    def turn(x, angle):
        even, odd = x[:, ::2], x[:, 1::2]
        out = np.empty_like(x)
        out[:, ::2] = even * np.cos(angle) - odd * np.sin(angle)
        out[:, 1::2] = even * np.sin(angle) + odd * np.cos(angle)
        return out


def pieces():
    raw, at, found = (data_folder() / FILES[1]).read_bytes(), 4, []
    for _ in range(512):
        score, length = struct.unpack_from("<fi", raw, at)
        found.append((raw[at + 8 : at + 8 + length], score))
        at += 8 + length
    return found


def encode(text, table):
    """Byte-pair encoding by brute force: the neighbouring pair whose union scores best is joined, until none does."""
    numbers = {piece: i for i, (piece, _) in enumerate(table)}
    ids = [numbers[character.encode()] for character in " " + text]
    while True:
        joined = [
            (table[both][1], -i, both)
            for i in range(len(ids) - 1)
            if (both := numbers.get(table[ids[i]][0] + table[ids[i + 1]][0])) is not None
        ]
        if not joined:
            return [1, *ids]
        _, i, both = max(joined)
        ids[-i : -i + 2] = [both]


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    return load_language_model(convert(tmp_path_factory.mktemp("models") / "stories"))


@needs_data
def test_the_tokenizer_reads_as_brute_force_does(stories):
    table = pieces()
    text = (data_folder() / "tinystories_sample.txt").read_text()[:1500].replace("\n", " ")
    for written in (*PROMPTS, text):
        ids = stories.tokenizer(written)["input_ids"]
        assert ids == encode(written, table)
        assert stories.tokenizer.decode(ids, skip_special_tokens=True) == written


@needs_data
def test_greedy_text_is_that_of_numpy(stories):
    import torch

    oracle, table = Oracle(data_folder() / FILES[0]), pieces()
    for text in completed(stories, read_texts(PROMPTS[:2]), max_new_tokens=LENGTH):
        ids = encode(text.prompt, table)
        start = len(ids)

        assert text.tokens is not None
        full = [*ids, *text.tokens]
        with torch.no_grad():
            logits = stories.module(input_ids=torch.tensor([full])).logits[0].numpy()
        by_hand = oracle.logits(full)
        np.testing.assert_allclose(logits, by_hand, atol=2e-3)
        # Each token is the likeliest after those before it: the greedy answer, in one pass.
        assert tuple(by_hand[start - 1 : -1].argmax(-1)) == text.tokens
        assert len(text.tokens) == LENGTH
        written = b"".join(table[i][0] for i in text.tokens).replace(b"<0x0A>", b"\n").decode()
        assert text.completion == written.removeprefix(" ")


@needs_data
def test_it_knows_its_stories(stories):
    import torch

    text = (data_folder() / "tinystories_sample.txt").read_text()[:1200]
    ids = torch.tensor([stories.tokenizer(text)["input_ids"]])[:, :500]
    with torch.no_grad():
        assert float(stories.module(input_ids=ids, labels=ids).loss) < 1.9


def test_wrong_files_are_told(tmp_path):
    with pytest.raises(CovaryError, match="nothing at"):
        convert(tmp_path / "out", tmp_path / "none.bin")
    (tmp_path / "short.bin").write_bytes(struct.pack("7i", 8, 16, 1, 2, 1, 10, 4) + bytes(40))
    (tmp_path / "tok.bin").write_bytes(b"")
    with pytest.raises(CovaryError, match="has 68 bytes"):
        convert(tmp_path / "out", tmp_path / "short.bin", tmp_path / "tok.bin")
    assert not (tmp_path / "out").exists()
