"""A model from random weights: deterministic, and starting near the uniform distribution."""

import math
from dataclasses import dataclass

import pytest
import torch

from rung.errors import ConfigError
from rung.model.build import build_model
from rung.model.shape import ModelConfig, resolve

SHAPE = resolve(ModelConfig(size="1m", layers=2))


@dataclass(frozen=True)
class Ids:
    """The special ids of a tokenizer."""

    vocab_size: int = 512
    bos: int = 0
    pad: int = 1
    stop_ids: tuple[int, ...] = (2, 0)


def test_parameters_are_those_the_shape_counts() -> None:
    for config in (ModelConfig(size="1m"), ModelConfig(size="1m", kv_heads=1, tied=False)):
        shape = resolve(config)
        model = build_model(shape, Ids(), seed=0)
        assert model.num_parameters() == shape.num_parameters(512)


def test_a_seed_gives_the_same_weights_whatever_came_before() -> None:
    torch.manual_seed(5)
    one = build_model(SHAPE, Ids(), seed=3).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert drawn == torch.rand(1), "the global random state is not moved"
    two = build_model(SHAPE, Ids(), seed=3).state_dict()
    other = build_model(SHAPE, Ids(), seed=4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(one[name], other[name])


def test_weights_have_the_deviations_they_should() -> None:
    weights = build_model(SHAPE, Ids(), seed=0).state_dict()
    matrix = 0.02 * math.sqrt(768 / 128)
    expected = {
        "model.embed_tokens.weight": 0.02,
        "model.layers.1.self_attn.q_proj.weight": matrix,
        "model.layers.1.self_attn.o_proj.weight": matrix / 2,  # sqrt(2 x 2 layers)
        "model.layers.1.mlp.down_proj.weight": matrix / 2,
    }
    for name, std in expected.items():
        assert weights[name].std().item() == pytest.approx(std, rel=0.03)
    assert bool((weights["model.norm.weight"] == 1).all())


@pytest.mark.parametrize("tied", [True, False])
def test_the_first_loss_is_that_of_a_uniform_guess(tied: bool) -> None:
    model = build_model(resolve(ModelConfig(size="1m", tied=tied)), Ids(), seed=0)
    model.set_attn_implementation("sdpa")
    ids = torch.randint(3, 512, (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(512), abs=0.1)


def test_special_ids_reach_the_config() -> None:
    model = build_model(SHAPE, Ids(), seed=0)
    config = model.generation_config
    assert config is not None
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, [2, 0], 1)
    assert model.training
    assert model.config.max_position_embeddings == SHAPE.context


def test_special_ids_beyond_the_vocabulary_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[600\] lie outside a vocabulary of 512"):
        build_model(SHAPE, Ids(stop_ids=(600,)), seed=0)
