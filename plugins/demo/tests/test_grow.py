"""A grown model computes what the small one does."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fastllm_plugin_demo.grow import assemble, grow
from fastllm_plugin_demo.models import DEMO, DEMO_100M
from fastllm_plugin_demo.shape import Shape

TOLERANCE = 5e-5
# Odd numbers of new key heads (1 and 3) and of new neurons, so that triples and a single unit occur as well as pairs.
SHAPES = [
    Shape(hidden=32, layers=2, intermediate=48, heads=4, kv_heads=2),
    Shape(hidden=48, layers=3, intermediate=49, heads=6, kv_heads=3),
    Shape(hidden=96, layers=7, intermediate=131, heads=10, kv_heads=5),
]


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def small(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=request.param,
        initializer_range=0.2,  # logits of a size at which a mistake shows
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = LlamaForCausalLM(config).eval()
        for name, parameter in model.named_parameters():
            if "norm" in name:  # all ones would hide a wrong rescaling of old against new dimensions
                parameter.data.uniform_(0.5, 1.5)
    return model


def logits(model: LlamaForCausalLM, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.config.vocab_size, (3, 40), generator=generator)
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_the_small_model(small: LlamaForCausalLM, shape: Shape) -> None:
    grown = grow(small, shape)
    expected = logits(small)
    assert expected.abs().max() > 1
    assert (logits(grown) - expected).abs().max() < TOLERANCE


def test_the_small_model_is_left_as_it_was(small: LlamaForCausalLM) -> None:
    before = logits(small)
    grown = grow(small, SHAPES[0])
    for parameter in grown.parameters():
        parameter.data.fill_(7.0)
    assert torch.equal(logits(small), before)


def test_configuration_is_that_of_the_shape(small: LlamaForCausalLM) -> None:
    shape = SHAPES[2]
    config = grow(small, shape).config
    assert config.hidden_size == shape.hidden
    assert config.num_hidden_layers == shape.layers
    assert config.intermediate_size == shape.intermediate
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (10, 5, 8)
    assert config.rms_norm_eps == pytest.approx(small.config.rms_norm_eps / 3)
    assert config.tie_word_embeddings == small.config.tie_word_embeddings
    assert small.config.hidden_size == 32


def test_parameters_are_counted_right() -> None:
    source = assemble_demo()
    shape = Shape(hidden=256, layers=13, intermediate=520, heads=8, kv_heads=4)
    counted = sum(parameter.numel() for parameter in grow(source, shape).parameters())
    assert counted == shape.parameters(head_dim=32, vocabulary=4096)


def test_seed_fixes_the_weights(small: LlamaForCausalLM) -> None:
    state = torch.get_rng_state()
    first, again, other = (grow(small, SHAPES[2], seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was touched"


def test_matrices_of_layers_are_dense(small: LlamaForCausalLM) -> None:
    for name, weight in grow(small, SHAPES[2]).named_parameters():
        if name.startswith("model.layers") and weight.dim() == 2:
            # Only what old units write to new dimensions is zero.
            zeros = (weight == 0).float().mean().item()
            assert zeros == 0 or "o_proj" in name or "down_proj" in name, name
            assert zeros < 0.5, name


def test_layers_are_reported_as_they_are_done(small: LlamaForCausalLM) -> None:
    done: list[int] = []
    grow(small, SHAPES[2], on_layer=lambda: done.append(1))
    assert len(done) == 7


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        (Shape(16, 2, 48, 4, 2), "hidden"),
        (Shape(32, 1, 40, 4, 2), "layers, intermediate"),
        (Shape(32, 2, 48, 8, 2), "query heads per key head"),
    ],
)
def test_shape_that_cannot_hold_the_model_is_refused(small: LlamaForCausalLM, shape: Shape, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        grow(small, shape)


def test_assemble_refuses_weights_that_do_not_fit(small: LlamaForCausalLM) -> None:
    weights = {name: parameter.detach() for name, parameter in small.named_parameters()}
    del weights["model.norm.weight"]
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        assemble(small.config, weights)


def assemble_demo(dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
    from fastllm_plugin_demo.build import load

    return load(DEMO.path()).to(dtype)


@pytest.mark.slow
def test_demo_100m_has_the_logits_of_demo() -> None:
    small = assemble_demo(torch.float32)
    assert (logits(grow(small, DEMO_100M.shape)) - logits(small)).abs().max() < TOLERANCE
