"""The plugin `prompt-lookup`: what followed the last tokens earlier in the text is the draft."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from fastllm_core import Options, hookimpl

if TYPE_CHECKING:
    from fastllm_core import Config, Context, Drafter


class PromptLookupOptions(Options):
    """How to look up, and where."""

    max_ngram: int = Field(
        5, ge=1, le=32, description="The longest run of last tokens to look up; shorter ones are tried after it."
    )
    min_ngram: int = Field(
        1, ge=1, description="The shortest run to look up; higher drafts more seldom, and is more often right."
    )
    pick: Literal["recent", "first", "frequent"] = Field(
        "recent",
        description='Where the run stood several times: "recent" copies from the latest place, "first" from the first, '
        '"frequent" from the latest one that went on with the most frequent next token.',
    )
    branches: int = Field(
        1, ge=1, le=16, description="Different continuations to draft at most; more than 1 makes a tree of them."
    )
    adapt: bool = Field(
        True,
        description="Each row drafts two tokens more after a draft that was accepted whole and one less after any "
        "other, up to draft.length; false always drafts as much as it may. Not with draft.controller = auto, which "
        "chooses by what is expected.",
    )
    corpus: tuple[str, ...] = Field(
        (), description="UTF-8 text files to look up in as well, where the text itself has nothing as long."
    )
    remember: bool = Field(
        False, description="Look up in what this pipeline has written before as well, also for other requests."
    )
    corpus_tokens: int = Field(
        200_000, ge=64, description="The most tokens that are kept of the files, and as many of what is remembered."
    )

    @field_validator("min_ngram")
    @classmethod
    def _not_above_max(cls, value: int, info: ValidationInfo) -> int:
        longest = info.data.get("max_ngram", value)
        if value > longest:
            raise ValueError(f"must be at most max_ngram, which is {longest}")
        return value

    @field_validator("corpus", mode="before")
    @classmethod
    def _one_file_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class PromptLookup:
    """Drafts what followed the last tokens earlier in the text."""

    api_version = 1
    Options = PromptLookupOptions

    def __init__(self, options: PromptLookupOptions) -> None:
        """options: how to look up, and where."""
        self.options = options

    @hookimpl
    def fastllm_check(self, config: Config) -> Sequence[str]:
        """A file that cannot be read, and a tree where only chains are promised the same bits."""
        problems = list(_unreadable(self.options.corpus))
        if config.exact and self.options.branches > 1:
            problems.append(
                "options.prompt-lookup.branches: exact = true is for chains; set branches = 1 or exact = false"
            )
        return problems

    @hookimpl
    def fastllm_make_drafter(self, context: Context) -> Drafter:
        """Read the corpus; the rest is made as rows come."""
        from .drafter import LookUp

        return LookUp(self.options, context)


def _unreadable(files: Sequence[str]) -> Iterator[str]:
    """A sentence for each file that is no readable text."""
    for file in files:
        try:
            with Path(file).expanduser().open(encoding="utf-8") as text:
                text.read(4096)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            yield f"options.prompt-lookup.corpus: cannot read '{file}' ({why}); give paths of text files"
