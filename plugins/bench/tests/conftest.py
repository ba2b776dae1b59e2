"""A tiny model in a folder, and methods that are installed by hand: a quick one, a slow one, and wrong ones."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastllm_core.testing import tiny_model, tiny_tokenizer

HEAD = """
    import time
    import torch
    from fastllm_core import Draft, Drafter, Guarantee, Proposal, Verdict, hookimpl
    from fastllm_core.testing import Scripted
"""
METHOD = """
    class Plugin:
        api_version = 1
        def __init__(self, options): pass
        @hookimpl
        def fastllm_make_drafter(self, context): return make(context)
"""
METHODS = {
    # Drafts what followed the last token when it was last seen: right now and then.
    "echo": """
    def guess(row, count):
        for at in range(row.length - 2, -1, -1):
            if row.tokens[at] == row.tokens[-1]:
                return row.tokens[at + 1 : at + 1 + count]
        return []
    def make(context): return Scripted(guess)
    """,
    "slow": """
    def guess(row, count):
        time.sleep(0.05)  # longer than a plain round takes on a busy machine
        return [0] * count
    def make(context): return Scripted(guess)
    """,
    "crashing": """
    def guess(row, count):
        if row.length > row.prompt_length + 4:
            raise RuntimeError("out of ideas")
        return [0] * count
    def make(context): return Scripted(guess)
    """,
    # Its acceptance forgets the first token that it should have kept.
    "dropping": """
    def guess(row, count):
        for at in range(row.length - 2, -1, -1):
            if row.tokens[at] == row.tokens[-1]:
                return row.tokens[at + 1 : at + 1 + count]
        return []
    def make(context): return Scripted(guess)

    class Dropping:
        guarantee = Guarantee.EXACT
        def decide(self, batch, draft, scores):
            best = scores.logits.argmax(-1)
            right = (best[:, :-1] == draft.tokens) & (torch.arange(draft.width) < draft.lengths[:, None])
            accepted = right.long().cumprod(1).sum(1)
            lost = (accepted > 0).long()
            place = torch.arange(draft.width + 1) + lost[:, None]
            kept = accepted - lost
            tokens = best.gather(1, place.clamp(max=draft.width))
            tokens[torch.arange(draft.width + 1) > kept[:, None]] = -1
            path = torch.arange(draft.width).expand(len(batch), -1).clone()
            path[path >= kept[:, None]] = -1
            return Verdict(kept, path, tokens)
    """,
}
EXTRA = {
    "dropping": """
        @hookimpl
        def fastllm_make_acceptor(self, context): return Dropping()
    """
}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny random Llama: 64 entries, a context of 256."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of methods that are installed for one test."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("FASTLLM_PLUGINS", ",".join(["bench", *METHODS]))
    for name, source in METHODS.items():
        info = site / f"fastllm_plugin_{name}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fastllm-plugin-{name}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[fastllm.plugins]\n{name} = fastllm_plugin_{name}:Plugin\n")
        parts = (HEAD, source, METHOD.rstrip() + EXTRA.get(name, ""))
        (site / f"fastllm_plugin_{name}.py").write_text("\n".join(map(textwrap.dedent, parts)))
    yield list(METHODS)
    for name in METHODS:
        sys.modules.pop(f"fastllm_plugin_{name}", None)
