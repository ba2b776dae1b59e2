"""Well-known ways to call transformers, each with and without `custom_generate`: is the text the same, and how fast?

    python core/benchmarks/transformers_examples.py --model demo-100m --method speculative \
        --options draft_model=demo-drafter

Arms take turns; a ratio is of both arms' seconds in the same repeat.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from threading import Thread
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer, pipeline

from fastllm_core import custom_generate
from fastllm_core.models import resolve_model

TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
NEW = 96


def chat(model: Any, tokenizer: Any, **more: Any) -> Any:
    """A chat template, then generate."""
    messages = [{"role": "user", "content": "Once upon a time there was a little dog."}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True, chat_template=TEMPLATE
    )
    outputs = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **more)
    return tokenizer.decode(outputs[0][inputs["input_ids"].shape[-1] :])


def text_generation(model: Any, tokenizer: Any, **more: Any) -> Any:
    """`pipeline("text-generation")`."""
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    return generator("The cat sat on the mat and", max_new_tokens=NEW, do_sample=False, **more)


def streaming(model: Any, tokenizer: Any, **more: Any) -> Any:
    """A streamer that is read while another thread generates."""
    inputs = tokenizer(["Mia went out to play"], return_tensors="pt")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    kwargs = {**inputs, "streamer": streamer, "max_new_tokens": NEW, "do_sample": False, **more}
    thread = Thread(target=model.generate, kwargs=kwargs)
    thread.start()
    pieces = list(streamer)
    thread.join()
    return "".join(pieces)


def batch(model: Any, tokenizer: Any, **more: Any) -> Any:
    """Prompts of several lengths, padded on the left."""
    prompts = ["Once upon a time", "The dog ran", "One day, Tom and his mother went to the park to see", "Lily"]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    outputs = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **more)
    return tokenizer.batch_decode(outputs, skip_special_tokens=True)


def penalties(model: Any, tokenizer: Any, **more: Any) -> Any:
    """Logits processors that the generation config makes."""
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    settings = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 4, "min_new_tokens": 40}
    return model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **settings, **more).tolist()


def scores(model: Any, tokenizer: Any, **more: Any) -> Any:
    """The returned dictionary with scores, and what is computed from it."""
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    settings = {"return_dict_in_generate": True, "output_scores": True}
    outputs = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **settings, **more)
    steps = model.compute_transition_scores(outputs.sequences, outputs.scores, normalize_logits=True)
    return outputs.sequences.tolist(), [[round(step, 3) for step in line] for line in steps.tolist()]


def sampling(model: Any, tokenizer: Any, **more: Any) -> Any:
    """Sampling; the draws are others, so only the length is compared (the law is enumerated in the tests)."""
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    torch.manual_seed(0)
    settings = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "num_return_sequences": 3}
    outputs = model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, **settings, **more)
    return list(outputs.shape)


EXAMPLES: dict[str, Callable[..., Any]] = {
    "chat template": chat,
    "pipeline": text_generation,
    "streamer": streaming,
    "batch, left padding": batch,
    "penalties": penalties,
    "scores": scores,
    "sampling": sampling,
}


def load(name: str, dtype: str) -> tuple[Any, Any]:
    """A model and its tokenizer, as transformers loads them."""
    folder = resolve_model(name).location
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def main() -> None:
    """Measure every example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="demo-100m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--method", default="speculative")
    parser.add_argument("--options", nargs="*", default=["draft_model=demo-drafter"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--examples", nargs="*", default=list(EXAMPLES))
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.model, arguments.dtype)
    options = dict(option.split("=", 1) for option in arguments.options)
    fast = custom_generate(arguments.method, config={}, tokenizer=tokenizer, **options)
    print(f"{arguments.model} in {arguments.dtype}, {arguments.method}, {torch.get_num_threads()} threads, torch "
          f"{torch.__version__}; {arguments.repeats} repeats")  # fmt: skip
    print("| example | same | seconds without | seconds with | ratio |\n| --- | --- | --- | --- | --- |")
    for name in arguments.examples:
        example = EXAMPLES[name]
        example(model, tokenizer, custom_generate=fast)  # builds the pipeline
        example(model, tokenizer)
        seconds: list[tuple[float, float]] = []
        same = 0
        for repeat in range(arguments.repeats):
            arms: list[dict[str, Any]] = [{}, {"custom_generate": fast}]
            answers, spent = {}, {}
            for arm in arms if repeat % 2 == 0 else reversed(arms):
                start = time.perf_counter()
                answers[len(arm)] = example(model, tokenizer, **arm)
                spent[len(arm)] = time.perf_counter() - start
            same += answers[0] == answers[1]
            seconds.append((spent[0], spent[1]))
        without, with_ = (statistics.median(column) for column in zip(*seconds, strict=True))
        ratios = [slow / quick for slow, quick in seconds]
        print(f"| {name} | {same} of {arguments.repeats} | {without:.2f} | {with_:.2f} | "
              f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f}) |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
