"""Reading texts, tokens and where the answer stands in them, and the model's own answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import texts
from covary.errors import CovaryError
from covary.text.completions import alike, completed, greedy
from covary.text.models.pretrained import LanguageModel, load_language_model
from covary.text.records import Text, read_texts
from covary.text.tokens import pad, prompt_tokens, tokenise

PROMPT = "sort : wolf apple :"


# Reading -------------------------------------------------------------------------------------------------------------


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_jsonl_parquet_and_lists_hold_the_same_texts(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"id": "a", "prompt": "one", "completion": "two", "label": "sort", "truth": 0},
        {"id": "b", "prompt": "drei\nvier", "completion": "", "label": "last", "truth": 1},
    ]
    expected = [Text("a", "one", None, "two", "sort", 0), Text("b", "drei\nvier", None, "", "last", 1)]
    assert read_texts(write(tmp_path / "t.jsonl", rows)) == expected
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert read_texts(tmp_path / "t.parquet") == expected
    assert read_texts(rows) == expected
    assert read_texts(expected) == expected


def test_plain_text_is_one_prompt_a_line(tmp_path):
    (tmp_path / "t.txt").write_text("\ufeffone\n\ntwo words\r\n", encoding="utf-8")
    assert [(text.id, text.prompt) for text in read_texts(tmp_path / "t.txt")] == [("0", "one"), ("1", "two words")]


def test_the_assistants_last_turn_is_the_completion():
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    (text,) = read_texts([{"messages": turns}])
    assert (text.messages, text.completion, text.display_text) == ((turns[0],), "hi", "user: hello")


WRONG = [
    ([{"completion": "x"}], "neither `prompt` nor `messages`"),
    ([{"prompt": "x", "messages": [{"role": "user", "content": "y"}]}], "both `prompt` and `messages`"),
    ([{"prompt": 3}], "`prompt` in entry 0 .* is a int"),
    ([{"messages": [{"role": "user"}]}], "turns with `role` and `content`"),
    ([{"messages": [{"role": "assistant", "content": "y"}]}], "no turn before the answer"),
    ([{"prompt": "x", "id": 1}, {"prompt": "y", "id": "1"}], "'1' occurs more than once"),
    ([{"prompt": "x", "truth": 1}, {"prompt": "y"}], "1 of 2 texts .* say their truth"),
    ([{"prompt": "x", "truth": 2}], "`truth` .* is 2"),
    ([["x"]], "is a list"),
    ([], "holds no texts"),
]


@pytest.mark.parametrize(("rows", "message"), WRONG)
def test_wrong_rows_are_told(rows, message):
    with pytest.raises(CovaryError, match=message):
        read_texts(rows)


def test_wrong_files_are_told(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"prompt": "x"}\n{"prompt"\n')
    with pytest.raises(CovaryError, match=r"line 2 of .* is not JSON"):
        read_texts(tmp_path / "t.jsonl")
    (tmp_path / "t.csv").write_text("x")
    with pytest.raises(CovaryError, match=r"ends in '\.csv'"):
        read_texts(tmp_path / "t.csv")
    (tmp_path / "t.parquet").write_text("x")
    with pytest.raises(CovaryError, match="no parquet file"):
        read_texts(tmp_path / "t.parquet")
    with pytest.raises(CovaryError, match="nothing at"):
        read_texts(tmp_path / "none.jsonl")


# Tokens --------------------------------------------------------------------------------------------------------------


def words(ids):
    return texts.causal().tokenizer.convert_ids_to_tokens(list(ids))


def test_the_prompt_is_masked():
    found = tokenise(texts.causal(), Text("a", PROMPT, completion=" apple wolf"))
    assert words(found.ids) == ["<s>", *PROMPT.split(), "apple", "wolf"]
    assert words(found.targets) == ["apple", "wolf"]
    # Position i of the output predicts token i + 1.
    assert [found.ids[i + 1] for i in found.counted] == list(found.targets)
    assert found.counted[0] == found.anchor == len(PROMPT.split())


def test_what_the_model_wrote_is_not_read_again():
    model = texts.causal()
    found = tokenise(model, Text("a", PROMPT, completion="never read", tokens=(9, 8, 7)))
    assert found.targets == (9, 8, 7)
    assert found.ids == (*prompt_tokens(model, Text("a", PROMPT)), 9, 8, 7)


def test_the_end_of_text_counts_only_where_nothing_else_does():
    model = texts.causal()
    assert tokenise(model, Text("a", PROMPT, completion="x", tokens=(9, 8, 2))).targets == (9, 8)
    assert tokenise(model, Text("a", PROMPT, completion="", tokens=(2,))).targets == (2,)
    assert tokenise(model, Text("a", PROMPT, completion="")).targets == (2,)


def test_truncation_depends_on_the_text_alone_and_changes_no_score():
    """A text cut to fit scores as the text that already is what is left of it."""
    from covary.text.extractor import TextExtractor

    model = texts.causal()
    long = Text("a", " ".join(["apple", "wolf", "tree"] * 30), completion=" bird boat")
    found = tokenise(model, long)
    assert (len(found), found.cut) == (48, 1 + 90 + 2 - 48)
    assert words(found.ids)[0] == "<s>"
    assert words(found.targets) == ["bird", "boat"]
    left = " ".join(words(found.ids[1:-2]))
    short = tokenise(model, Text("a", left, completion=" bird boat"))
    assert (short.ids, short.cut) == (found.ids, 0)
    features = TextExtractor(model)
    together = features.rows(texts.batch([*texts.tokens(3), found])).take([3])
    texts.assert_same(together, features.rows(texts.batch([short])))
    assert len(tokenise(model, long, 20)) == 20
    much = tokenise(model, Text("a", "sort", completion=" ".join(["apple"] * 60)))
    assert (len(much), len(much.targets), much.anchor) == (48, 47, 0)


def test_chat_templates_are_the_tokenizers_own():
    import copy

    model = texts.causal()
    with pytest.raises(CovaryError, match="no chat template"):
        tokenise(model, read_texts([{"messages": [{"role": "user", "content": "x"}]}])[0])
    chat = copy.deepcopy(model.tokenizer)
    chat.chat_template = (
        "<s>{% for m in messages %} {{ m.role }} : {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} assistant :{% endif %}"
    )
    speaking = LanguageModel(model.module, chat)
    turns = [{"role": "user", "content": "sort wolf"}, {"role": "assistant", "content": " wolf"}]
    found = tokenise(speaking, read_texts([{"messages": turns}])[0])
    assert words(found.ids) == ["<s>", "<unk>", ":", "sort", "wolf", "<unk>", ":", "wolf"]
    assert words(found.targets) == ["wolf"]


def test_padding_is_told_apart_on_either_side():
    some = texts.tokens(3)
    longest = max(map(len, some))
    for side in ("left", "right"):
        padded = pad(some, side, 5)
        for row, text in enumerate(some):
            mask = padded["mask"][row]
            assert mask.sum() == len(text)
            assert bool(mask[0 if side == "right" else longest - 1])
            assert tuple(padded["ids"][row][mask].tolist()) == text.ids
            assert tuple(padded["targets"][row][padded["counted"][row]].tolist()) == text.targets
            assert padded["ids"][row][int(padded["anchor"][row])] == text.ids[text.anchor]
            assert (padded["targets"][row][~padded["counted"][row]] == -100).all()


def test_encoders_count_words_or_everything():
    text = Text("a", "sort : wolf")
    assert tokenise(texts.encoder("sequence"), text).counted == (0, 1, 2, 3)
    assert tokenise(texts.encoder("token"), text).counted == (1, 2, 3)
    assert tokenise(texts.encoder("token"), Text("a", "wolf " * 90)).cut == 91 - 48


# Answers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [texts.causal, texts.numbered])
def test_answers_are_the_most_likely_tokens_in_any_batch(model):
    model = model()
    some = read_texts(texts.records(9))
    together = completed(model, some, max_new_tokens=6)
    for text, answered in zip(some, together, strict=True):
        (alone,) = completed(model, [text], max_new_tokens=6)
        assert alone == answered
        ids = list(prompt_tokens(model, text))
        for token in answered.tokens or ():
            with torch.no_grad():
                assert int(model.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)


def test_prompts_of_like_length_are_answered_together():
    lengths = {0: 10, 1: 100, 2: 9, 3: 98, 4: 7}
    assert alike(lengths, 8, 0.2) == [[1, 3], [0, 2], [4]]
    assert alike(lengths, 8, 0.0) == [[1], [3], [0], [2], [4]]
    assert alike(dict.fromkeys(range(5), 3), 2) == [[0, 1], [2, 3], [4]]


def test_progress_is_told_as_answers_come():
    message = []
    completed(texts.causal(), read_texts(texts.records(9)), max_new_tokens=2, progress=lambda *at: message.append(at))
    assert message[-1] == (9, 9)


def test_an_answer_ends_with_the_end_of_text():
    model = texts.causal()
    first = greedy(model, [(1, 9, 12)], 6)[0]
    assert len(first) == 6
    import copy

    ending = copy.deepcopy(model.tokenizer)
    ending.eos_token = model.tokenizer.convert_ids_to_tokens(first[2])
    stop = first.index(first[2])
    assert greedy(LanguageModel(model.module, ending), [(1, 9, 12)], 6)[0] == first[: stop + 1]


def test_given_completions_are_left_alone():
    model = texts.causal()
    text = Text("a", PROMPT, completion="wolf apple")
    assert completed(model, [text]) == [text]
    with pytest.raises(CovaryError, match="less than the 48 positions"):
        completed(model, [Text("a", PROMPT)], max_new_tokens=48)


def test_long_prompts_leave_room_for_the_answer():
    model = texts.causal()
    long = Text("a", " ".join(["apple"] * 80))
    (answered,) = completed(model, [long], max_new_tokens=5)
    found = tokenise(model, answered)
    ids = found.ids[: found.anchor + 1]
    with torch.no_grad():
        assert int(model.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == found.targets[0]


# Folders -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return texts.saved(tmp_path_factory.mktemp("models") / "words")


def test_a_folder_gives_the_same_model(folder):
    model = load_language_model(folder)
    ids = torch.tensor([[1, 9, 12, 30]])
    with torch.no_grad():
        np.testing.assert_array_equal(model.module(input_ids=ids).logits, texts.causal().module(input_ids=ids).logits)
    assert (model.task, model.longest, model.end, model.module.training) == ("causal", 48, 2, False)
    assert model.tokenizer(PROMPT)["input_ids"] == texts.causal().tokenizer(PROMPT)["input_ids"]
    assert next(load_language_model(folder, dtype="bfloat16").module.parameters()).dtype == torch.bfloat16


def test_wrong_folders_are_told(folder, tmp_path):
    with pytest.raises(CovaryError, match=r"no config\.json"):
        load_language_model(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(CovaryError, match="holds BertModel"):
        load_language_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CovaryError, match="not readable JSON"):
        load_language_model(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CovaryError, match="cannot be loaded"):
        load_language_model(tmp_path)
    with pytest.raises(CovaryError, match="unknown dtype"):
        load_language_model(folder, dtype="int8")
    with pytest.raises(CovaryError, match="no adapter_config"):
        load_language_model(folder, adapter=str(tmp_path))
    with pytest.raises(CovaryError, match="rank 'x'"):
        load_language_model(folder, adapter="fresh:x")
