"""Suites: what is built in, what a folder or a file holds, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastllm_core import RequestError
from fastllm_plugin_bench.suite import load_suite


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_the_demo_suite_is_built_in_and_has_two_turns() -> None:
    suite = load_suite("demo")
    assert {len(question.turns) for question in suite.questions} == {1, 2}
    assert len({question.category for question in suite.questions}) == 4
    assert suite.hash == load_suite("demo").hash


def test_the_grounded_suite_is_built_in_and_its_answers_are_begun_in_words_of_the_prompt() -> None:
    suite = load_suite("grounded")
    assert len(suite.questions) >= 50
    counts = {category: sum(q.category == category for q in suite.questions) for category in
              ("summary", "rewriting", "answering", "code edit", "retelling")}  # fmt: skip
    assert set(counts.values()) == {12}
    for question in suite.questions:
        (prompt,) = question.turns
        passage, _, asked = prompt.rpartition("\n\n")
        assert len(passage) > 200
        assert set(asked.split()[-3:]) & set(passage.split()) or question.category == "code edit", question.id


def test_a_limit_takes_from_all_categories_in_turn() -> None:
    few = load_suite("demo").limited(5)
    counts = [sum(q.category == c for q in few.questions) for c in ("opening", "middle", "refrain", "two turns")]
    assert counts == [2, 1, 1, 1]
    assert few.hash != load_suite("demo").hash


def test_spec_bench_from_a_folder_counts_mt_bench_as_one_task(tmp_path: Path) -> None:
    write(
        tmp_path / "question.jsonl",
        {"question_id": 81, "category": "writing", "turns": ["a", "b"]},
        {"question_id": 2, "category": "rag", "turns": ["c"]},
    )
    suite = load_suite("spec-bench", tmp_path)
    assert [(q.id, q.category, q.turns) for q in suite.questions] == [
        ("81", "mt_bench", ("a", "b")),
        ("2", "rag", ("c",)),
    ]


@pytest.mark.parametrize(
    ("name", "file", "row", "prompt"),
    [
        ("humaneval", "humaneval.jsonl", {"task_id": "HumanEval/0", "prompt": "def f():"}, "def f():"),
        ("gsm8k", "gsm8k_test.jsonl", {"question": "1+1?", "answer": "2"}, "Question: 1+1?\nAnswer:"),
        ("mbpp", "mbpp.jsonl", {"task_id": 1, "text": "Add.", "test_list": ["assert f(1)"]}, "Add.\n"),
    ],
)
def test_published_suites_from_a_folder(
    tmp_path: Path, name: str, file: str, row: dict[str, object], prompt: str
) -> None:
    write(tmp_path / file, row)
    (question,) = load_suite(name, tmp_path).questions
    assert question.turns[0].startswith(prompt)


def test_any_file_of_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", {"prompt": "x"}, {"turns": ["y", "z"], "category": "long", "id": "q"})
    suite = load_suite(str(path))
    assert suite.name == "mine"
    assert [(q.id, q.category, q.turns) for q in suite.questions] == [("1", "all", ("x",)), ("q", "long", ("y", "z"))]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"answer": "x"}], r"row 1: has no 'turns'"),
        ([{"prompt": "x", "id": 1}, {"prompt": "y", "id": 1}], r"two rows have the id '1'"),
        ([], r"has no questions"),
    ],
)
def test_a_file_that_is_no_suite_is_refused(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_suite(str(write(tmp_path / "mine.jsonl", *rows)))


def test_an_unknown_suite_names_those_that_there_are() -> None:
    with pytest.raises(RequestError, match=r"--suite nothing: no such suite.*spec-bench"):
        load_suite("nothing")
    with pytest.raises(RequestError, match=r"has no spec_bench\.jsonl or question\.jsonl"):
        load_suite("spec-bench", Path(__file__).parent)


def test_what_cannot_be_downloaded_names_the_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("fastllm_plugin_bench.download.urlopen", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    for name in ("spec-bench", "gsm8k"):
        with pytest.raises(RequestError, match=f"--suite {name}: cannot be downloaded .no route to host.*--data DIR"):
            load_suite(name)
