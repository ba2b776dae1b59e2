"""Tokenizers and vocabularies as people have them: padding, ragged prompts, padded embeddings, tokens added later."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fastllm_core import load
from fastllm_core.errors import RequestError
from fastllm_core.testing import tiny_model, tiny_tokenizer

V = 64
PROMPTS = ["the cat sat on", "a", "once upon a time there was", "dogs"]
CHAT = "{% for m in messages %}{{ m.role[0] }} {{ m.content }}. {% endfor %}{% if add_generation_prompt %}a {% endif %}"


def generated(model: PreTrainedModel, ids: list[int], count: int) -> list[int]:
    prompt = torch.tensor([ids])
    answer: Any = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=count, pad_token_id=0
    )
    return list(answer[0, len(ids) :].tolist())


def padding_tokenizer(side: str, pad: bool, always: bool) -> PreTrainedTokenizerFast:
    """always: as a tokenizer.json that pads and truncates whatever it is given."""
    tokenizer = tiny_tokenizer(V)
    tokenizer.padding_side = side
    if pad:
        tokenizer.pad_token = "<unk>"
    if always:
        tokenizer.backend_tokenizer.enable_padding(length=40, direction=side, pad_id=0, pad_token="<unk>")
        tokenizer.backend_tokenizer.enable_truncation(max_length=5)
    return tokenizer


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("pad", "always"), [(False, False), (True, False), (True, True)])
def test_padding_is_not_ours(side: str, pad: bool, always: bool) -> None:
    """A ragged batch is never padded: no side, no padding token and no default of the tokenizer has a say."""
    model, tokenizer = tiny_model(num_hidden_layers=2), padding_tokenizer(side, pad, always)
    with load(model, "plain", tokenizer=tokenizer) as pipeline:
        answers = pipeline.generate(PROMPTS, max_new_tokens=8)
        chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS[:2]]
        with pytest.raises(RequestError, match="no chat template"):
            pipeline.generate(chats)
        tokenizer.chat_template = CHAT
        chatted = pipeline.generate(chats, max_new_tokens=8)
    plain = tiny_tokenizer(V)
    texts = [*PROMPTS, *(f"u {prompt}. a " for prompt in PROMPTS[:2])]
    for text, answer in zip(texts, [*answers, *chatted], strict=True):
        ids = plain(text).input_ids
        assert list(answer.prompt_token_ids) == ids
        assert list(answer.token_ids) == generated(model, ids, 8)


def test_an_embedding_padded_beyond_the_tokenizer() -> None:
    """Ids without a token win the arg max here as they do in `generate`, and the text goes on without them."""
    model = tiny_model(num_hidden_layers=2, vocab_size=V + 32)
    tokenizer = tiny_tokenizer(V)
    with load(model, "plain", tokenizer=tokenizer) as pipeline:
        assert pipeline.target.vocab_size == V + 32
        answers = pipeline.generate(PROMPTS, max_new_tokens=24)
        pieces = list(pipeline.stream(PROMPTS[0], max_new_tokens=24))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert list(answer.token_ids) == generated(model, tokenizer(prompt).input_ids, 24)
        assert answer.text == tokenizer.decode(answer.token_ids)
        assert any(token >= V for token in answer.token_ids)
        assert any(token < V for token in answer.token_ids)
    assert "".join(piece.text for piece in pieces) == answers[0].text


def test_a_tokenizer_larger_than_the_embedding() -> None:
    """Such pairs exist and work for most texts; the text that does not says why."""
    model, tokenizer = tiny_model(num_hidden_layers=2), tiny_tokenizer(V)
    tokenizer.add_tokens(["<call>"])
    with load(model, "plain", tokenizer=tokenizer) as pipeline:
        assert len(pipeline.generate("a dog", max_new_tokens=3).token_ids) == 3
        with pytest.raises(RequestError, match="gives token id 64, and the model's vocabulary has 64") as caught:
            pipeline.generate("a <call>", max_new_tokens=3)
        assert "resize_token_embeddings" in str(caught.value)
        tokenizer.chat_template = CHAT
        with pytest.raises(RequestError, match="gives token id 64"):
            pipeline.generate([{"role": "user", "content": "<call>"}], max_new_tokens=3)
    model.resize_token_embeddings(len(tokenizer))
    with load(model, "plain", tokenizer=tokenizer) as pipeline:
        answer = pipeline.generate("a <call>", max_new_tokens=3)
    assert list(answer.token_ids) == generated(model, tokenizer("a <call>").input_ids, 3)
