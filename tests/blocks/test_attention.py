"""Attention against NumPy, its masks as subsets, its bias as copies, and the transformer block."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.blocks.attention import (
    MultiHeadAttention,
    TransformerBlock,
    TransformerPooling,
    attend,
)
from fusion_jax.errors import FusionError
from fusion_jax.precision import compute_dtype
from tests import reference

HEADS, WIDTH, ROWS, KEYS = 2, 6, 4, 7
ATTENTION, BLOCK = MultiHeadAttention(heads=HEADS), TransformerBlock(heads=HEADS, mlp_ratio=2)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Every row has another number of valid keys; the last has none.
MASK = np.arange(KEYS)[None, :] < np.array([KEYS, 3, 1, 0])[:, None]


@functools.cache
def params_of(module):
    shapes = jax.eval_shape(module.init, jax.random.key(0), draw(1, 2, WIDTH), draw(1, 2, WIDTH))
    leaves, treedef = jax.tree.flatten(shapes)
    return jax.tree.unflatten(treedef, [draw(*x.shape, seed=i) for i, x in enumerate(leaves)])


@functools.cache
def program(module):
    return jax.jit(
        lambda x, y, mask, bias: module.apply(params_of(module), x, y, mask=mask, bias=bias)
    )


compiled_attend = jax.jit(attend)


def test_attend_by_hand():
    # Logits 0 and log 3 (after division by sqrt 4): shares 1/4 and 3/4 of the values 4 and 8 are 7.
    query, key = np.float32([[[[2, 0, 0, 0]]]]), np.zeros((1, 3, 1, 4), np.float32)
    key[0, 1, 0, 0] = np.log(3)
    key[0, 2] = 50
    value = np.float32([4, 8, 1000]).reshape(1, 3, 1, 1) * np.ones((1, 1, 1, 4), np.float32)
    mask = np.array([[True, True, False]])
    found = compiled_attend(query, key, value, mask=mask, bias=np.zeros((1, 3), np.float32))
    np.testing.assert_allclose(found, np.full((1, 1, 1, 4), 7), rtol=1e-6)
    # A bias of log 3 on the first key makes the shares equal.
    bias = np.float32([[np.log(3), 0, 0]])
    found = compiled_attend(query, key, value, mask=mask, bias=bias)
    np.testing.assert_allclose(found, np.full((1, 1, 1, 4), 6), rtol=1e-6)


@pytest.mark.parametrize("module", [ATTENTION, BLOCK], ids=["attention", "block"])
def test_masked_keys_are_keys_left_out(module):
    x, y, bias = draw(ROWS, 3, WIDTH, seed=1), draw(ROWS, KEYS, WIDTH, seed=2), draw(ROWS, KEYS)
    found = program(module)(x, y, MASK, bias)
    run = reference.attention if module is ATTENTION else reference.block
    for row in range(ROWS):
        kept = MASK[row]
        expected = run(
            params_of(module)["params"], np.float64(x[row]), y[row][kept], bias[row][kept], HEADS
        )
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=2e-5)


def test_masked_keys_have_no_influence_to_the_bit():
    x, y, bias = draw(ROWS, 3, WIDTH, seed=1), draw(ROWS, KEYS, WIDTH, seed=2), draw(ROWS, KEYS)
    other = np.where(MASK[:, :, None], y, 100 * draw(ROWS, KEYS, WIDTH, seed=5))
    other_bias = np.where(MASK, bias, 40).astype(np.float32)
    np.testing.assert_array_equal(
        program(ATTENTION)(x, y, MASK, bias), program(ATTENTION)(x, other, MASK, other_bias)
    )


def test_a_log_bias_acts_as_copies_of_the_key():
    # Gains 3, 1 and 2 against tokens that are there three times, once and twice.
    copies = np.array([3, 1, 2, 1, 1, 1, 1])
    x, y = draw(ROWS, 3, WIDTH, seed=1), draw(ROWS, KEYS, WIDTH, seed=2)
    bias = np.tile(np.log(copies).astype(np.float32), (ROWS, 1))
    repeated = np.repeat(y, copies, axis=1)
    plain = np.zeros(repeated.shape[:2], np.float32)
    np.testing.assert_allclose(
        program(ATTENTION)(x, y, np.ones((ROWS, KEYS), bool), bias),
        program(ATTENTION)(x, repeated, np.ones(plain.shape, bool), plain),
        atol=1e-5,
    )


def test_a_bias_of_zero_changes_no_bit():
    x, y = draw(ROWS, 3, WIDTH, seed=1), draw(ROWS, KEYS, WIDTH, seed=2)
    zero = program(ATTENTION)(x, y, MASK, np.zeros((ROWS, KEYS), np.float32))
    np.testing.assert_array_equal(zero, program(ATTENTION)(x, y, MASK, None))


def test_gradients_are_finite_without_a_valid_key_and_stop_at_masked_keys():
    query, key, value = (draw(ROWS, n, HEADS, 3, seed=n) for n in (2, KEYS, KEYS))

    def total(query, key, value, bias):
        return jnp.sum(attend(query, key, value, mask=MASK, bias=bias) ** 2)

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(query, key, value, draw(ROWS, KEYS))
    assert all(np.isfinite(x).all() for x in gradients)
    for into in gradients[1:]:
        assert not np.asarray(into)[~MASK].any()
        assert np.asarray(into)[0].any()
    assert not np.asarray(gradients[0])[-1].any()
    assert not np.asarray(compiled_attend(query, key, value, mask=MASK))[-1].any()


def test_attend_keeps_the_precision_of_its_input():
    # Float64 agrees to 1e-13, which no softmax in float32 would; bfloat16 logits would differ by
    # 0.3 at 100, and with them the shares by a third.
    with jax.enable_x64(True):
        query, key, value = (np.float64(draw(1, n, 1, 4, seed=n)) for n in (2, 5, 5))
        mass = np.exp(query[0, :, 0] @ key[0, :, 0].T / 2)
        expected = mass / mass.sum(-1, keepdims=True) @ value[0, :, 0]
        found = attend(jnp.asarray(query), jnp.asarray(key), jnp.asarray(value))
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found[0, :, 0], expected, rtol=1e-13)
    query, key = jnp.full((1, 1, 1, 1), 10, jnp.bfloat16), jnp.full((1, 2, 1, 1), 10, jnp.bfloat16)
    value = jnp.asarray([0, 1], jnp.bfloat16).reshape(1, 2, 1, 1)
    found = attend(query, key, value, bias=jnp.asarray([[0, 0.25]], jnp.float32))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(found).item(), 1 / (1 + np.exp(-0.25)), atol=2e-3)


def test_block_computes_the_first_tokens_only_if_asked():
    x, y = draw(ROWS, 3, WIDTH, seed=1), draw(ROWS, KEYS, WIDTH, seed=2)
    whole = program(BLOCK)(x, y, MASK, None)
    first = jax.jit(lambda x, y: BLOCK.apply(params_of(BLOCK), x, y, mask=MASK, num_out=1))(x, y)
    assert first.shape == (ROWS, 1, WIDTH)
    np.testing.assert_allclose(first, whole[:, :1], atol=1e-5)


def test_block_drops_both_branches():
    # With everything dropped only the residual stream is left.
    x, y = draw(ROWS, 3, WIDTH, seed=1), draw(ROWS, KEYS, WIDTH, seed=2)
    found = BLOCK.apply(params_of(BLOCK), x, y, drop=lambda branch: 0 * branch)
    np.testing.assert_array_equal(found, x)


def test_bfloat16_branches_leave_the_residual_stream_in_float32():
    module = TransformerBlock(heads=HEADS, mlp_ratio=2, dtype="bfloat16")
    x, y, bias = draw(ROWS, 3, WIDTH, seed=1), draw(ROWS, KEYS, WIDTH, seed=2), draw(ROWS, KEYS)
    found = jax.jit(lambda x: module.apply(params_of(BLOCK), x, y, mask=MASK, bias=bias))(x)
    exact = np.asarray(program(BLOCK)(x, y, MASK, bias))
    assert found.dtype == jnp.float32
    difference = np.abs(found - exact).max() / np.abs(exact).max()
    assert 1e-5 < difference < 3e-2  # rounded to 8 bits, and not more wrong than that


def test_wrong_fields_are_refused_in_one_line():
    with pytest.raises(FusionError, match="4 heads do not divide the width 6: choose heads that"):
        MultiHeadAttention(heads=4).init(jax.random.key(0), draw(1, 2, 6), draw(1, 2, 6))
    with pytest.raises(FusionError, match="dtype is 'float16': it must be 'float32' or 'bfloat16'"):
        compute_dtype("float16", jnp.zeros(1))


POOLING = TransformerPooling(depth=2, heads=HEADS, mlp_ratio=1)


@functools.cache
def pooling_params():
    shapes = jax.eval_shape(POOLING.init, jax.random.key(0), draw(1, 2, WIDTH))
    leaves, treedef = jax.tree.flatten(shapes)
    return jax.tree.unflatten(treedef, [draw(*x.shape, seed=i) for i, x in enumerate(leaves)])


def pooled(tokens, mask=None):
    return np.asarray(jax.jit(POOLING.apply)(pooling_params(), tokens, mask=mask))


def test_pooling_reads_the_tokens_that_count_in_any_order():
    tokens = draw(ROWS, KEYS, WIDTH)
    whole = pooled(tokens, MASK)
    assert whole.shape == (ROWS, WIDTH)
    np.testing.assert_allclose(whole[1], pooled(tokens[1:2, :3])[0], atol=1e-5)
    np.testing.assert_allclose(whole[0], pooled(tokens[:1, ::-1])[0], atol=1e-5)
    junk = np.where(MASK[..., None], tokens, 1e3).astype(np.float32)
    np.testing.assert_array_equal(pooled(junk, MASK), whole)
    # Without a token it is what the CLS token alone gives; a token that counts changes it.
    assert np.abs(whole[0] - whole[3]).max() > 0.1
    with pytest.raises(FusionError, match="4 heads do not divide the width 6"):
        TransformerPooling(heads=4).init(jax.random.key(0), tokens)
