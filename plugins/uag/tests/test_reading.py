"""The drafter's context is the committed text, whatever the two tokenizers are and however the tokens come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastllm_plugin_uag.reading import Reading
from fastllm_plugin_uag.vocabulary import Vocabulary

KINDS = ["byte-level", "unigram", "byte-fallback", "stories-512", "stories-4096"]
PAIRS = [(one, other) for one in KINDS for other in KINDS if one != other]
WORDS = [
    *(" the", " Once", "upon", " don't", " ", "  ", "\n", "\n\n", "\t", " 12345", "!", " a", "ing", "\x00"),
    *("🙂", "👩\u200d👩\u200d👧", "你好", "。", "é", "<s>", "</s>", "<|im_end|>"),
]
texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=3).filter(lambda text: "\ufffd" not in text), max_size=40)
pairs = pytest.mark.parametrize(("target", "drafter"), PAIRS)
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def reading(target: Vocabulary, drafter: Vocabulary) -> Reading:
    return Reading(target, drafter, target.counterparts(drafter, "bos_token_id"))


def plainly(tokenizer: Any, text: str) -> list[int]:
    """A text's tokens without what the tokenizer puts around it, and with special tokens as text."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    try:
        return list(backend.encode(text, add_special_tokens=False).ids)
    finally:
        backend.encode_special_tokens = False


def shown(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.backend_tokenizer.decode(list(tokens), skip_special_tokens=False))


@pairs
@few
@given(words=texts, sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_the_context_is_the_committed_text(
    kinds: Any, target: str, drafter: str, words: list[str], sizes: list[int]
) -> None:
    theirs, ours = kinds.tokenizer(target), kinds.tokenizer(drafter)
    if "unigram" in (target, drafter):  # whose model itself makes the special token of these letters
        words = [word for word in words if word != "</s>"]
    tokens = plainly(theirs, "".join(words))
    opening = kinds.vocabulary(drafter).opening
    made = reading(kinds.vocabulary(target), kinds.vocabulary(drafter))
    said, whole = "", shown(theirs, tokens)
    for end in _ends(len(tokens), sizes):
        made.read(tokens[:end])
        assert made.ids[: len(opening)] == opening
        said = shown(ours, made.ids[len(opening) :])
        assert whole.startswith(said)
        assert said.startswith(shown(theirs, tokens[:end]).rstrip("\ufffd"))  # what is broken may be held back
        assert len(made.pending) < 4
    assert said == whole
    assert not made.pending
    if whole and not whole.startswith(" "):  # whose first space some tokenizers take for their own
        assert made.ids == [*opening, *plainly(ours, whole)]


def _ends(count: int, sizes: Sequence[int]) -> list[int]:
    ends = [0]
    while ends[-1] < count:
        ends.append(ends[-1] + sizes[len(ends) % len(sizes)])
    return [min(end, count) for end in ends[1:]]


def test_letters_of_a_special_token_are_letters(kinds: Any) -> None:
    for kind in KINDS:
        vocabulary = kinds.vocabulary(kind)
        for name in vocabulary.specials.values():
            tokens = vocabulary.encode(f"a {name} b")
            assert not {*tokens} & {*vocabulary.specials}
            assert b"".join(vocabulary.words[token] for token in tokens) == f"a {name} b".encode()


def test_special_tokens_stay_special_tokens(kinds: Any) -> None:
    """By their name, else by their role; one that the drafter lacks is written out, and none is dropped."""
    theirs, ours = kinds.tokenizer("byte-level"), kinds.vocabulary("byte-fallback")
    messages = [{"role": "user", "content": "Hello 你好\n\tthere"}]
    text = theirs.apply_chat_template(messages, tokenize=False)
    tokens = [*theirs(text).input_ids, theirs.eos_token_id, *theirs(" Once").input_ids]
    made = reading(kinds.vocabulary("byte-level"), ours)
    made.read(tokens)
    said = shown(kinds.tokenizer("byte-fallback"), made.ids)
    assert said == f"<s> {text}</s>  Once"  # its own tokenizer, too, puts a space in front of each stretch
    assert made.ids.count(1) == made.ids.count(2) == 1


def test_a_begin_that_the_drafter_lacks_is_its_own_begin(kinds: Any) -> None:
    """Many a drafter has no token that begins a text; letters that look like the target's would only confuse it."""
    theirs, ours = kinds.vocabulary("stories-4096"), kinds.vocabulary("byte-level")
    assert 1 not in theirs.counterparts(ours, "bos_token_id")
    made = reading(theirs, ours)
    made.read(kinds.tokenizer("stories-4096")("Once upon").input_ids)
    assert shown(kinds.tokenizer("byte-level"), made.ids) == "Once upon"
    made.read([*kinds.tokenizer("stories-4096")("Once upon").input_ids, 1, *theirs.encode(" a")])
    assert shown(kinds.tokenizer("byte-level"), made.ids) == "Once upon<s>a"


def test_marks_of_a_chat_are_kept_where_both_have_them(kinds: Any) -> None:
    theirs = kinds.tokenizer("byte-level")
    ours = kinds.tokenizer("byte-level").backend_tokenizer
    made = reading(kinds.vocabulary("byte-level"), kinds.vocabulary("byte-level"))
    tokens = theirs("<|im_start|>user\nhi <|im_end|>\n").input_ids
    made.read(tokens)
    assert made.ids == tokens
    assert ours.decode(made.ids, skip_special_tokens=False) == "<|im_start|>user\nhi <|im_end|>\n"


def test_words_that_are_marked_where_they_go_on(kinds: Any) -> None:
    """WordPiece: a space in front of every word, which the first of a text does not show."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["[UNK]", "the", "dog", "##gy", "runs", "!"]
    backend = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    words = Vocabulary(kinds.loaded(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")), "model")
    tokens = backend.encode("the doggy runs!").ids
    made = reading(words, kinds.vocabulary("byte-level"))
    made.read(tokens)
    assert shown(kinds.tokenizer("byte-level"), made.ids) == "the doggy runs!"
    back = reading(kinds.vocabulary("byte-level"), words)
    back.read(kinds.vocabulary("byte-level").encode("the doggy runs!"))
    assert back.ids == tokens


def test_a_tokenizer_with_more_entries_than_its_model(kinds: Any) -> None:
    """What the model has no row for must not reach it."""
    ours = Vocabulary(kinds.loaded(kinds.tokenizer("stories-4096"), size=300), "model")
    made = reading(kinds.vocabulary("byte-level"), ours)
    made.read(kinds.vocabulary("byte-level").encode("Once upon a time"))
    assert len(made.ids) > 3
    assert max(made.ids) == 299


@pytest.mark.parametrize("kind", ["byte-fallback", "stories-512"])
def test_the_token_that_begins_a_text_comes_once(kinds: Any, kind: str) -> None:
    """Whether the target has one or not, and however long the text gets."""
    text = "Once upon a time there was a dog. " * 20
    for target in ("stories-4096", "byte-level"):
        tokens = kinds.tokenizer(target)(text).input_ids
        made = reading(kinds.vocabulary(target), kinds.vocabulary(kind))
        for end in range(len(tokens) + 1):
            made.read(tokens[:end])
        assert made.ids == kinds.tokenizer(kind)(text).input_ids


def test_a_character_is_held_back_until_it_is_whole(kinds: Any) -> None:
    target = kinds.vocabulary("stories-4096")
    tokens = target.encode("a🙂b")
    made = reading(target, kinds.vocabulary("byte-level"))
    seen = []
    for end in range(len(tokens) + 1):
        made.read(tokens[:end])
        seen.append((shown(kinds.tokenizer("byte-level"), made.ids), made.pending))
    held = [("a", "🙂".encode()[:count]) for count in (0, 1, 2, 3)]
    assert seen == [("", b""), *held, ("a🙂", b""), ("a🙂b", b"")]


def test_what_is_read_again_and_again_stays_short(kinds: Any) -> None:
    """Texts are tokenized in stretches: a round's work does not grow with the text."""
    ours = kinds.vocabulary("stories-512")
    made = reading(kinds.vocabulary("stories-4096"), ours)
    made.read(kinds.tokenizer("stories-4096")("Once upon a time there was a dog. " * 50).input_ids)
    assert len(made._open) < 100 < len(made._fixed)


def test_a_vocabulary_with_tokens_across_words_is_read_whole(kinds: Any) -> None:
    """There no place is safe to cut at, so that the tokens are those of the whole text."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", *"abcdefghijklmnopqrstuvwxyz ", "e ", "e t", "\n", "\na"]
    merges = [("e", " "), ("e ", "t"), ("\n", "a")]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges, unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    ours = Vocabulary(kinds.loaded(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")), "model")
    assert ours.cuts is None
    text = "once upon a time there was one tale to tell " * 4
    target = kinds.vocabulary("byte-level")
    made = reading(target, ours)
    made.read(target.encode(text))
    assert made.ids == backend.encode(text).ids
