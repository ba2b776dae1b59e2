"""Layer views against the whole model, on every family that we name. Exact: the same kernels, the same numbers."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastllm_core import Adapter, views
from fastllm_core.errors import UnsupportedModel
from fastllm_core.layout import chain
from fastllm_core.models import LoadedModel
from fastllm_core.network import CacheLayers, Network
from fastllm_core.port import Inputs
from fastllm_core.testing import tiny_model

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8},
    # Five sliding layers, a full one, a sliding one: cuts fall on both sides of the full layer.
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "num_hidden_layers": 7},
    "gpt2": {},
    "gpt_neox": {},
    "phi": {},
    "phi3": {},
    "opt": {"ffn_dim": 48},
    "opt_projected": {"ffn_dim": 48, "word_embed_proj_dim": 16},  # as opt-350m
    # As the released Granite models: factors that the decoder, not the embedding or a layer, applies.
    "granite": {"embedding_multiplier": 12.0, "logits_scaling": 4.0, "residual_multiplier": 0.22},
    "afmoe": {
        "mup_enabled": True,
        "head_dim": 8,
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
    },
    "olmo2": {},
    "stablelm": {},
    "mixtral": {},
}
EXTENT, ROWS, SIZE = 32, 14, 64
every_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def model_of(family: str) -> PreTrainedModel:
    return tiny_model(family.removesuffix("_projected"), **FAMILIES[family])


def network_of(model: PreTrainedModel) -> Network:
    return Network(LoadedModel("tiny", model, None, torch.device("cpu"), torch.float32))


def fresh_cache(network: Network, batch: int = 2) -> CacheLayers:
    shapes = [shape or (0, 0, 0) for shape in network.kv_shapes]
    return [
        (torch.zeros(batch, heads, EXTENT, keys), torch.zeros(batch, heads, EXTENT, values))
        for heads, keys, values in shapes
    ]


def some_tokens(batch: int = 2, rows: int = ROWS) -> Tensor:
    return torch.randint(0, SIZE, (batch, rows), generator=torch.Generator().manual_seed(1))


def rows_of(tokens: Tensor, hidden: Tensor | None = None) -> Inputs:
    return chain(tokens, torch.zeros(len(tokens), dtype=torch.long), EXTENT, hidden=hidden)


def whole_and_split(network: Network, cut: int) -> tuple[Tensor, Tensor, CacheLayers, CacheLayers]:
    tokens, whole_cache, split_cache = some_tokens(), fresh_cache(network), fresh_cache(network)
    whole = network.forward(rows_of(tokens), whole_cache)
    lower = network.forward(rows_of(tokens), split_cache, stop=cut, hidden_layers=(cut,))
    upper = network.forward(rows_of(tokens, lower.hidden[cut]), split_cache, start=cut)
    assert whole.logits is not None
    assert upper.logits is not None
    assert lower.logits is None
    return whole.logits, upper.logits, whole_cache, split_cache


@every_family
def test_two_views_are_the_whole_model_at_every_cut(family: str) -> None:
    network = network_of(model_of(family))
    for cut in range(1, network.layers):
        whole, split, whole_cache, split_cache = whole_and_split(network, cut)
        assert torch.equal(whole, split), f"cut {cut}: off by {(whole - split).abs().max()}"
        for (keys, values), (split_keys, split_values) in zip(whole_cache, split_cache, strict=True):
            assert torch.equal(keys, split_keys)
            assert torch.equal(values, split_values)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "granite", "opt_projected"])
def test_three_views_and_hidden_states_inside_a_view(family: str) -> None:
    network = network_of(model_of(family))
    last, cuts = network.layers, (1, network.layers - 1)
    expected = network.forward(rows_of(some_tokens()), fresh_cache(network), hidden_layers=tuple(range(last + 1)))
    cache, hidden = fresh_cache(network), None
    for start, stop in zip((0, *cuts), (*cuts, last), strict=True):
        asked = tuple(range(start, stop + 1))
        out = network.forward(rows_of(some_tokens(), hidden), cache, start=start, stop=stop, hidden_layers=asked)
        for layer in asked:
            assert torch.equal(out.hidden[layer], expected.hidden[layer]), (start, stop, layer)
        hidden = out.hidden[stop]
    assert torch.equal(out.logits, expected.logits)


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.12"), reason="Gemma 3 asked its layers then")
def test_a_view_that_keeps_the_whole_configuration_is_wrong_on_mixed_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(config: Any, start: int, stop: int, total: int) -> None:
        config.num_hidden_layers = stop - start

    monkeypatch.setattr(views, "_cut_config", keep)
    network = network_of(model_of("gemma3_text"))
    # The test above would not notice if the window were never reached or all layers were alike.
    whole, split, *_ = whole_and_split(network, 4)
    assert (whole - split).abs().max() > 0.01


def zeroed(model: PreTrainedModel, attention: frozenset[int], mlp: frozenset[int]) -> PreTrainedModel:
    """The reference: a deep copy whose last matrix of each skipped sub-layer is 0."""
    reference = copy.deepcopy(model)
    outputs = ("o_proj", "out_proj", "dense", "c_proj"), ("down_proj", "fc2", "dense_4h_to_h", "c_proj")
    parts = Adapter().attention, Adapter().mlp
    for skipped, sublayers, names in zip((attention, mlp), parts, outputs, strict=True):
        for index in skipped:
            layer = views.layer_list(views.backbone(reference))[index]
            sublayer = next(getattr(layer, name) for name in sublayers if hasattr(layer, name))
            found = [p for name, p in sublayer.named_parameters() if any(part in names for part in name.split("."))]
            assert found
            for parameter in found:
                nn.init.zeros_(parameter)
    return reference


@every_family
def test_skipped_sublayers_add_nothing(family: str) -> None:
    model = model_of(family)
    network = network_of(model)
    attention, mlp = frozenset({1, 2}), frozenset() if family.startswith("opt") else frozenset({0, 2})
    reference = network_of(zeroed(model, attention, mlp)).forward(rows_of(some_tokens()), fresh_cache(network))
    cache = fresh_cache(network)
    skipped = network.forward(rows_of(some_tokens()), cache, skip_attention=attention, skip_mlp=mlp)
    plain = network.forward(rows_of(some_tokens()), fresh_cache(network))
    assert torch.equal(skipped.logits, reference.logits)
    assert not torch.equal(skipped.logits, plain.logits)
    for layer, (keys, _) in enumerate(cache):
        assert keys.any() == (layer not in attention)  # a skipped attention writes nothing


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "opt", "phi"])
def test_a_layer_without_sublayers_is_gone_around(family: str) -> None:
    """Its norms do not run either, and what comes out of it is still recorded."""
    network = network_of(model_of(family))
    only = frozenset({1})
    view = network.view(network.whole._replace(skip_attention=only, skip_mlp=only))
    layer = views.layer_list(views.backbone(view))[1]
    assert type(layer) is not type(views.layer_list(views.backbone(network.model))[1])
    ran: list[str] = []
    for name, part in layer.named_modules():
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
    skip: dict[str, Any] = {"skip_attention": only, "skip_mlp": only, "hidden_layers": (1, 2, network.layers)}
    given = network.forward(rows_of(some_tokens()), fresh_cache(network), **skip)
    assert set(ran) == {""}
    assert torch.equal(given.hidden[1], given.hidden[2])
    assert given.hidden[network.layers].shape == given.hidden[1].shape


def test_a_layer_that_still_does_something_is_not_gone_around() -> None:
    model: Any = copy.deepcopy(model_of("llama"))
    forward = type(model.model.layers[2]).forward

    class Scaled(type(model.model.layers[2])):  # type: ignore[misc]
        def forward(self, *arguments: Any, **named: Any) -> Any:
            return 3.0 * forward(self, *arguments, **named)

    model.model.layers[2].__class__ = Scaled
    network, only = network_of(model), frozenset({2})
    given = network.forward(
        rows_of(some_tokens()), fresh_cache(network), skip_attention=only, skip_mlp=only, hidden_layers=(2, 3)
    )
    assert torch.equal(given.hidden[3], 3.0 * given.hidden[2])


def test_what_cannot_be_skipped_or_cut_is_refused() -> None:
    bert, llama = network_of(tiny_model("bert", is_decoder=True, pad_token_id=0)), network_of(model_of("llama"))
    rows = rows_of(some_tokens())
    with pytest.raises(UnsupportedModel, match="BertLMHeadModel cannot skip sub-layers: attention and MLP answer with"):
        bert.forward(rows, fresh_cache(bert), skip_mlp=frozenset({0}))
    with pytest.raises(UnsupportedModel, match="Linear: no sub-layer to skip among mlp"):
        views.sublayers(nn.Linear(2, 2), ("mlp",))
    with pytest.raises(UnsupportedModel, match=r"layer 9 does not exist, the model has layers 0\.\.3"):
        llama.forward(rows, fresh_cache(llama), skip_attention=frozenset({9}))
    for start, stop in ((2, 2), (3, 5), (-1, 2)):
        with pytest.raises(UnsupportedModel, match="do not exist"):
            llama.forward(rows, fresh_cache(llama), start=start, stop=stop)
    with pytest.raises(UnsupportedModel, match="no list of decoder layers"):
        views.backbone(nn.Linear(2, 2))


@pytest.mark.parametrize("skipped", [1, 5])
def test_a_skip_set_and_a_range_compose(skipped: int) -> None:
    network = network_of(model_of("gemma3_text"))
    skip: dict[str, Any] = {"skip_attention": frozenset({skipped}), "skip_mlp": frozenset({skipped})}
    whole = network.forward(rows_of(some_tokens()), fresh_cache(network), **skip)
    cache = fresh_cache(network)
    lower = network.forward(rows_of(some_tokens()), cache, stop=3, hidden_layers=(3,), **skip)
    upper = network.forward(rows_of(some_tokens(), lower.hidden[3]), cache, start=3, **skip)
    assert torch.equal(whole.logits, upper.logits)


def snapshot(model: PreTrainedModel) -> dict[str, Any]:
    """Everything about a model that a careless view could change."""
    modules = dict(model.named_modules())
    return {
        "config": copy.deepcopy(model.config.to_dict()),
        "implementation": model.config._attn_implementation,
        "generation": model.generation_config.to_dict(),
        "values": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "tensors": {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()},
        "grad": [parameter.requires_grad for parameter in model.parameters()],
        "modules": {name: id(module) for name, module in modules.items()},
        "attributes": {
            name: {key: id(value) for key, value in vars(module).items()} for name, module in modules.items()
        },
        "children": {
            name: [(key, id(child)) for key, child in module.named_children()] for name, module in modules.items()
        },
        "hooks": {name: [len(getattr(module, kind)) for kind in HOOKS] for name, module in modules.items()},
        "training": {name: module.training for name, module in modules.items()},
        "forwards": {name: type(module).forward for name, module in modules.items()},
    }


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "granite", "opt_projected", "mixtral"])
@pytest.mark.parametrize("training", [False, True])
def test_the_users_model_is_never_touched(family: str, training: bool) -> None:
    model = tiny_model(family.removesuffix("_projected"), **FAMILIES[family]).train(training)
    model.config._attn_implementation = "flex_attention"  # the copy must fall back, the user's must not
    before = snapshot(model)
    network = network_of(model)
    rows, cache = rows_of(some_tokens()), fresh_cache(network)
    network.forward(rows, cache, hidden_layers=(0, 1, network.layers))
    lower = network.forward(rows, cache, stop=2, hidden_layers=(1, 2))
    network.forward(rows_of(some_tokens(), lower.hidden[2]), cache, start=2, hidden_layers=(3,))
    network.forward(rows, cache, skip_attention=frozenset({1}))
    after = snapshot(model)
    for tensor, old in zip(after.pop("values").values(), before.pop("values").values(), strict=True):
        assert torch.equal(tensor, old)
    for aspect, value in before.items():
        assert after[aspect] == value, aspect


def test_a_copy_shares_weights_and_is_in_evaluation_mode() -> None:
    model = tiny_model().train()
    twin = views.share(model)
    assert not any(module.training for module in twin.modules())
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(mine is not theirs for mine, theirs in zip(model.modules(), twin.modules(), strict=True))
    assert twin.config is not model.config
    inner: Any = twin
    assert inner.model.layers[0].self_attn.config is twin.config  # one configuration, so that a change reaches all
    assert inner.model.config is twin.config


def test_hooks_and_attributes_added_to_a_copy_stay_there() -> None:
    model = tiny_model()
    twin: Any = views.share(model)
    twin.model.layers[0].register_forward_hook(lambda *_: None)
    twin.model.register_buffer("extra", torch.zeros(1))
    del twin.model.layers[1]
    twin.config.layer_types = ["full_attention"]
    assert not model.model.layers[0]._forward_hooks
    assert "extra" not in dict(model.named_buffers())
    assert len(model.model.layers) == 4
    assert getattr(model.config, "layer_types", None) is None


def test_tied_weights_stay_tied_in_a_copy() -> None:
    twin: Any = views.share(model_of("gpt2"))
    assert twin.lm_head.weight is twin.transformer.wte.weight
