"""What programs are compiled with on each platform."""

import jax
import jax.numpy as jnp
import pytest

from fusion_jax import compiler
from fusion_jax.blocks.convolution import Conv
from fusion_jax.training.parallel import DataParallel


@pytest.fixture
def forget():
    """The cached answer, forgotten before and after."""
    compiler.compiler_options.cache_clear()
    yield
    compiler.compiler_options.cache_clear()


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_options_are_for_cpu_alone(platform):
    assert compiler.compiler_options(platform) == {}


def test_convolutions_of_a_compiled_program_are_not_those_of_ynnpack():
    module, x = Conv(64), jnp.ones((4, 28, 28, 64))
    variables = module.init(jax.random.key(0), x)

    def gradient(variables):
        return jax.grad(lambda v: module.apply(v, x).sum())(variables)

    text = jax.jit(gradient).lower(variables).compile().as_text()
    if "__ynn" not in text:
        pytest.skip("this XLA does not use YNNPACK")
    own = DataParallel(jax.devices()[:1]).evaluation_program(gradient)
    assert "__ynn" not in own.lower(variables).compile().as_text()


def test_an_option_that_is_not_known_is_left_out(forget, monkeypatch):
    known, unknown = compiler.compiler_options("cpu"), {"xla_cpu_of_another_version": "1"}
    assert known
    for options, left in ((unknown, {}), (unknown | compiler._CPU, known)):
        compiler.compiler_options.cache_clear()
        monkeypatch.setattr(compiler, "_CPU", options)
        assert compiler.compiler_options("cpu") == left
