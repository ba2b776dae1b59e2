"""The second source: text files, and what was written before, both bounded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastllm_core
from fastllm_core import ConfigError, Pipeline
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_plugin_prompt_lookup.corpus import CHARACTERS, Memory, read
from fastllm_plugin_prompt_lookup.drafter import LookUp
from fastllm_plugin_prompt_lookup.index import BREAK, Index


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def load(*, tokenizer: Any = None, config: dict[str, Any] | None = None, **options: Any) -> Pipeline:
    settings = {"draft.controller": "fixed", **(config or {})}
    return fastllm_core.load(
        tiny_model(), "prompt-lookup", tokenizer=tokenizer or tiny_tokenizer(), config=settings, **options
    )


def memory(limit: int) -> Memory:
    return Memory(lambda capacity: Index(range(1, 4), capacity, "recent"), limit)


@settings(deadline=None)
@given(written=st.lists(st.lists(st.integers(0, 9), max_size=40), max_size=30), limit=st.integers(4, 100))
def test_a_memory_keeps_the_latest_texts_and_no_more_than_it_may(written: list[list[int]], limit: int) -> None:
    kept = memory(limit)
    for text in written:
        kept.add(text)
        indexes = kept.indexes
        assert sum(map(len, indexes)) <= limit
        assert len(indexes) <= 2
        end = [*text[-(limit // 2 - 1) :], BREAK]
        assert indexes[0].tokens.tolist()[-len(end) :] == end
    held = [token for index in reversed(kept.indexes) for token in index.tokens]
    told = [token for text in written for token in (*text[-(limit // 2 - 1) :], BREAK)]
    assert held == told[len(told) - len(held) :]


def test_a_memory_starts_with_nothing() -> None:
    assert sum(map(len, memory(64).indexes)) == 0


def test_files_are_read_with_a_break_behind_each(tmp_path: Path) -> None:
    files = [write(tmp_path, "a", "ab"), write(tmp_path, "b", "c\nd")]
    tokens, whole = read(files, tiny_tokenizer(), 64, 100)
    a, b, c, newline, d = (tiny_tokenizer()(text)["input_ids"][0] for text in "abc\nd")
    assert tokens == [a, b, BREAK, c, newline, d, BREAK, BREAK]
    assert whole


def test_ids_that_the_model_lacks_are_breaks(tmp_path: Path) -> None:
    tokens, _ = read([write(tmp_path, "a", "azb")], tiny_tokenizer(), tiny_tokenizer()("z")["input_ids"][0], 100)
    assert tokens[1] == BREAK
    assert all(token < 64 for token in tokens)


def test_no_more_is_read_than_is_kept(tmp_path: Path) -> None:
    class Counting:
        read = 0

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            self.read += len(text)
            return {"input_ids": [1] * len(text)}

    tokenizer: Any = Counting()
    tokens, whole = read([write(tmp_path, "long", "line\n" * CHARACTERS)], tokenizer, 64, 1000)
    assert len(tokens) == 1000
    assert tokens[-1] == BREAK
    assert not whole
    assert tokenizer.read < 2 * CHARACTERS


def test_a_file_is_looked_up_in_where_the_text_has_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, "phrases.txt", "the cat sat on the mat")
    with load(corpus=[file]) as pipeline:
        pipeline.generate("a cat", max_new_tokens=6)
        assert pipeline.engine.report.drafted
    with load() as pipeline:
        pipeline.generate("q", max_new_tokens=2)
        assert not pipeline.engine.report.drafted


def test_one_file_needs_no_list(tmp_path: Path) -> None:
    file = write(tmp_path, "phrases.txt", "the cat sat on the mat")
    with load(config={"options.prompt-lookup.corpus": file}) as pipeline:
        drafter = pipeline.drafter
        assert isinstance(drafter, LookUp)
        assert drafter.files is not None


def test_a_file_that_is_not_there_is_reported_before_weights_are_loaded(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^options\.prompt-lookup\.corpus: cannot read '.*nothing' \(No such file or directory\); give paths of",
    ):
        fastllm_core.load("a-model-that-does-not-exist", "prompt-lookup", config={}, corpus=[str(tmp_path / "nothing")])


def test_a_file_that_is_no_text_is_reported(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match=r"cannot read '.*image' \(it is not UTF-8 text\)"):
        load(corpus=[str(tmp_path / "image")])
    (tmp_path / "later").write_bytes(b"text\n" * 100_000 + b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"^options\.prompt-lookup\.corpus: cannot read '.*later'"):
        load(corpus=[str(tmp_path / "later")], corpus_tokens=1_000_000)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(Is a directory\)"):
        load(corpus=[str(tmp_path)])


def test_a_corpus_needs_a_tokenizer(tmp_path: Path) -> None:
    file = write(tmp_path, "phrases.txt", "the cat")
    with pytest.raises(ConfigError, match=r"^options\.prompt-lookup\.corpus: .*need a tokenizer"):
        fastllm_core.load(tiny_model(), "prompt-lookup", config={}, corpus=[file])


def test_a_corpus_that_is_cut_is_said_to_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path, "long.txt", "a" * 500)
    with caplog.at_level(logging.WARNING, "fastllm"), load(corpus=[file], corpus_tokens=100):
        assert "only the first 100 tokens are used; raise corpus_tokens" in caplog.text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_are_plain_decodings_while_the_memory_fills(temperature: float) -> None:
    """What is remembered changes from run to run, and with it the drafts; the text must not."""
    settings: dict[str, Any] = {"max_new_tokens": 24, "temperature": temperature, "seed": 3}
    prompts = [[1, 2, 3], [7], [5] * 9, [1, 2, 3]]
    with load(remember=True, corpus_tokens=64) as pipeline:
        runs = [[result.token_ids for result in pipeline.generate(prompts, **settings)] for _ in range(3)]
    with fastllm_core.load(tiny_model(), "plain", tokenizer=tiny_tokenizer(), config={}) as plain:
        expected = [result.token_ids for result in plain.generate(prompts, **settings)]
    assert runs == [expected] * 3


def test_the_second_time_a_text_is_written_it_is_remembered() -> None:
    with load(remember=True, max_ngram=3, min_ngram=3, adapt=False) as pipeline:
        first, second = (pipeline.generate([4, 8, 15], max_new_tokens=24).report for _ in range(2))
    assert second.accepted > first.accepted
    assert second.rounds < first.rounds
