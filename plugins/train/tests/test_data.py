"""Documents from files, what of them is learned, and how they are packed."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path
from typing import Any

import pytest
import torch

from fastllm_core import ConfigError, Lesson, visible
from fastllm_core.testing import tiny_tokenizer
from fastllm_plugin_train.data import Piece, Text, documents, tokenized
from fastllm_plugin_train.rows import pack, packed, split

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }}!{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)


@pytest.fixture
def tokenizer() -> Any:
    made = tiny_tokenizer()
    made.chat_template = TEMPLATE
    return made


def read(path: Path, content: str, tokenizer: Any) -> list[tuple[Piece, ...]]:
    path.write_text(content, encoding="utf-8")
    return list(documents([path], tokenizer))


def test_a_line_of_text_is_a_document(tmp_path: Path, tokenizer: Any) -> None:
    found = read(tmp_path / "a.txt", "one\\ntwo\n\nthree\n", tokenizer)
    assert found == [(Piece("one\ntwo", True),), (Piece("three", True),)]


@pytest.mark.parametrize(("suffix", "opened"), [(".xz", lzma.open), (".gz", gzip.open)])
def test_packed_files_are_read_as_they_are(tmp_path: Path, tokenizer: Any, suffix: str, opened: Any) -> None:
    path = tmp_path / f"a.txt{suffix}"
    with opened(path, "wt", encoding="utf-8") as file:
        file.write("one\n")
    assert list(documents([path], tokenizer)) == [(Piece("one", True),)]


def test_only_answers_are_learned(tmp_path: Path, tokenizer: Any) -> None:
    rows = '{"question": "how", "answer": "so"}\n{"prompt": "p", "completion": "c"}\n{"text": "t"}\n'
    assert read(tmp_path / "a.jsonl", rows, tokenizer) == [
        (Piece("how", False), Piece("so", True)),
        (Piece("p", False), Piece("c", True)),
        (Piece("t", True),),
    ]


@pytest.mark.parametrize(
    "row",
    [
        '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, '
        '{"role": "user", "content": "ok"}, {"role": "assistant", "content": "by"}]}',
        '{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}, '
        '{"from": "human", "value": "ok"}, {"from": "gpt", "value": "by"}]}',
    ],
)
def test_every_answer_of_a_chat_is_learned_and_nothing_else(tmp_path: Path, tokenizer: Any, row: str) -> None:
    (document,) = read(tmp_path / "a.jsonl", row, tokenizer)
    assert document == (
        Piece("u hi!a ", False),
        Piece("yo!", True),
        Piece("u ok!a ", False),
        Piece("by!", True),
    )
    text = tokenized(document, tokenizer)
    learned = [token for token, answer in zip(text.tokens, text.answers, strict=True) if answer]
    assert tokenizer.decode(learned) == "yo!by!"


def test_bad_rows_are_left_out_and_counted(tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = '{"text": "a"}\n{"text": 7}\n{oops\n{"other": 1}\n'
    assert len(read(tmp_path / "a.jsonl", rows, tokenizer)) == 1
    assert "3 of 4 rows were left out; the first: line 2: a text was expected, not 7" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "{}\n", "holds no document \\(line 1: neither text"),
        ("a.csv", "x\n", "must be .txt or .jsonl"),
        ("a.txt.xz", "not packed", "cannot be read"),
    ],
)
def test_useless_files_are_refused(tmp_path: Path, tokenizer: Any, name: str, content: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(tmp_path / name, content, tokenizer)


def test_rows_hold_every_token_once() -> None:
    texts = [Text(list(range(1, 1 + size)), [True] * size) for size in (5, 9, 3, 8, 2, 20, 7)]
    rows = pack(texts, 10)
    assert int((rows.documents >= 0).sum()) == sum(len(text.tokens) for text in texts)
    for tokens, owners, positions in zip(rows.tokens, rows.documents, rows.positions, strict=True):
        for owner in range(int(owners.max()) + 1):
            mine = owners == owner
            assert positions[mine].tolist() == list(range(int(mine.sum())))
            assert (tokens[mine].diff() == 1).all()


def test_documents_do_not_see_each_other() -> None:
    rows = packed([[Text([1, 2], [True] * 2), Text([3, 4], [True] * 2)]], 5)
    sees = visible(rows.documents.long())[0].int().tolist()
    assert sees == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]


def test_places_count_whose_next_token_is_an_answer_of_the_same_document() -> None:
    rows = packed([[Text([1, 2, 3], [False, True, True]), Text([4, 5], [True, True])]], 6)
    lesson = Lesson(rows.tokens, rows.documents, rows.positions, rows.answers, {}, torch.zeros(()))
    assert lesson.counted()[0].int().tolist() == [1, 1, 0, 1, 0, 0]
    assert lesson.counted(2)[0].int().tolist() == [1, 0, 0, 0, 0, 0]


def test_every_row_comes_once_in_an_epoch_and_orders_differ() -> None:
    rows = packed([[Text([index, index], [True, True])] for index in range(10)], 2)
    taken = [int(token) for step in range(5) for token in rows.batch(step, 4, seed=3).tokens[:, 0]]
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert taken[:10] != taken[10:]
    assert rows.batch(2, 4, seed=3).tokens.equal(rows.batch(2, 4, seed=3).tokens)


def test_held_out_rows_are_not_learned() -> None:
    rows = packed([[Text([index, index], [True, True])] for index in range(10)], 2)
    learned, held = split(rows, 0.2, 64, seed=0)
    assert len(held) == 2
    assert not {*learned.tokens[:, 0].tolist()} & {*held.tokens[:, 0].tolist()}
    with pytest.raises(ConfigError, match="fills a single row"):
        split(rows.take(torch.tensor([0])), 0.2, 64, seed=0)
