"""MWAM's bank and weights against the released numbers, and as a balancer."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.balancing.fixed import FixedScales
from fusion_jax.balancing.mwam import (
    MWAM,
    PRESETS,
    Preset,
    balance_weights,
    feature_map,
    frequency_shares,
    update_bank,
)
from fusion_jax.config import Recipe
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.encoders.cnn import CNNEncoder
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.encoders.resnet import ResNetEncoder
from fusion_jax.encoders.vit import ViTEncoder
from fusion_jax.errors import FusionError
from fusion_jax.frequency import frequency_ratio
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel, parameter_modality
from fusion_jax.objectives.supervised import Supervised
from fusion_jax.optimizers import SGD
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.schedulers.udml import UDMLScheduler
from fusion_jax.tasks.classification import Classification, ClassificationHead
from fusion_jax.training.checkpoints import Checkpoints, digest
from fusion_jax.training.state import create_state
from fusion_jax.training.step import make_train_step
from fusion_jax.types import Batch, Features, FusionWeights, ModelOutput
from tests.conftest import ROOT


def test_bank_and_weights_are_the_released_ones():
    golden = np.load(ROOT / "tests" / "golden" / "mwam_weights.npz")
    # The released numbers went through float32, so their bank is known to its rounding; the
    # recurrence itself holds to 1e-9.
    own = np.zeros(3)
    with jax.enable_x64():
        bank, seen = jnp.zeros(3, jnp.float64), jnp.zeros(3, bool)
        for ratio, weights, banks in zip(
            golden["frm"], golden["weights"], golden["bank"], strict=True
        ):
            bank = update_bank(bank, jnp.asarray(ratio), seen=seen, start="soft")
            seen = jnp.ones(3, bool)
            own = 0.5 * own + 0.5 * ratio
            np.testing.assert_allclose(bank, own, rtol=1e-9)
            np.testing.assert_allclose(bank, banks, rtol=1e-7)
            found = balance_weights(jnp.asarray(ratio), bank, preset="official")
            np.testing.assert_allclose(found, weights, atol=1e-6)


def test_soft_start_lets_the_weights_of_balanced_inputs_rise_from_one_half():
    # The half-sized bank at step 0 makes every share 2: K follows .500, .534, .693, .839, ...
    bank, seen, ratio, found = jnp.zeros(2), jnp.zeros(2, bool), jnp.ones(2), []
    for _ in range(8):
        bank = update_bank(bank, ratio, seen=seen, start="soft")
        seen = jnp.ones(2, bool)
        found.append(float(balance_weights(ratio, bank, preset="official")[0]))
    expected = [0.500, 0.534, 0.693, 0.839, 0.920, 0.960, 0.980, 0.990]
    np.testing.assert_allclose(found, expected, atol=6e-4)


@pytest.mark.parametrize(
    ("preset", "expected"), [("official", (1.5, 0.5, 1.5)), ("paper", (1.483, 0.5, 1.469))]
)
def test_weights_of_the_published_ratios(preset, expected):
    # Table 1: RGB 1.81e8, depth 2.33e10, infrared 1.02e9.
    ratio = jnp.asarray([1.81e8, 2.33e10, 1.02e9])
    np.testing.assert_allclose(balance_weights(ratio, ratio, preset=preset), expected, atol=1e-3)


def test_robust_weights_are_one_where_balanced_and_one_on_average():
    np.testing.assert_allclose(balance_weights(jnp.ones(3), jnp.full(3, 7.0)), 1, atol=1e-6)
    found = np.asarray(balance_weights(jnp.ones(3), jnp.asarray([1.0, 2.0, 6.0])))
    assert found.mean() == pytest.approx(1, abs=1e-6) and (np.diff(found) < 0).all()
    assert np.isfinite(balance_weights(jnp.zeros(2), jnp.zeros(2))).all()


def test_unavailable_modalities_get_one_and_do_not_count():
    here = jnp.asarray([True, False, True])
    found = balance_weights(jnp.ones(3), jnp.asarray([1.0, 1e9, 3.0]), available=here)
    alone = balance_weights(jnp.ones(2), jnp.asarray([1.0, 3.0]))
    assert found[1] == 1
    np.testing.assert_allclose(found[jnp.asarray([0, 2])], alone, atol=1e-6)


def test_what_is_not_finite_never_enters_the_bank():
    bank, seen = jnp.asarray([2.0, 3.0, 0.0]), jnp.asarray([True, True, False])
    ratio = jnp.asarray([jnp.nan, 5.0, jnp.inf])
    np.testing.assert_array_equal(update_bank(bank, ratio, seen=seen), [2.0, 4.0, 0.0])
    # A bank of zero that was seen is a value, not a sign of emptiness.
    found = update_bank(jnp.zeros(1), jnp.ones(1), seen=jnp.ones(1, bool))
    np.testing.assert_array_equal(found, [0.5])


def make_batch(rows=16, seed=0):
    generator = np.random.default_rng(seed)
    smooth = generator.normal(size=(rows, 1, 1, 1)) + generator.normal(0, 0.05, (rows, 16, 16, 1))
    return Batch(
        inputs={
            "noisy": generator.normal(size=(rows, 16, 16, 1)).astype(np.float32),
            "smooth": smooth.astype(np.float32),
        },
        present=np.ones((rows, 2), bool),
        target=np.zeros(rows, np.int32),
        mask=np.arange(rows) < rows - 3,
        example_id=np.arange(rows),
    )


@pytest.mark.parametrize("preset", ["robust", "paper", "official"])
def test_smooth_modality_is_slowed_down(preset):
    balancer = MWAM(preset=preset, intervention="hybrid")
    state = balancer.init(2)
    for step in range(4):
        loss_weights, scale, state = balancer.observe(state, make_batch(seed=step), None)
    assert scale[1] < scale[0]
    np.testing.assert_array_equal(loss_weights, scale)
    assert bool(state["seen"].all())


def test_interventions_choose_what_is_scaled():
    for intervention, (loss, update) in {"update": (False, True), "loss": (True, False)}.items():
        balancer = MWAM(intervention=intervention)
        weights, scale, _ = balancer.observe(balancer.init(2), make_batch(), None)
        assert (bool(np.any(weights != 1)), bool(np.any(scale != 1))) == (loss, update)
    with pytest.raises(FusionError, match="intervention is 'grad': choose one of"):
        MWAM(intervention="grad").observe(MWAM().init(2), make_batch(), None)
    with pytest.raises(FusionError, match="preset is 'best'"):
        MWAM(preset="best").observe(MWAM().init(2), make_batch(), None)


def test_bank_holds_the_mean_over_present_valid_rows_and_keeps_what_is_absent():
    batch = make_batch()
    present = batch.present.copy()
    present[::2, 0] = False
    balancer = MWAM()
    _, _, state = balancer.observe(balancer.init(2), batch.replace(present=present), None)
    ratios = np.asarray(frequency_ratio(batch.inputs["noisy"]))
    assert state["bank"][0] == pytest.approx(ratios[:13][present[:13, 0]].mean(), rel=1e-5)
    gone = batch.present.copy()
    gone[:, 0] = False
    _, scale, after = balancer.observe(state, batch.replace(present=gone), None)
    assert after["bank"][0] == state["bank"][0] and scale[0] == 1
    # Never seen at all: no bank, and weight 1.
    _, scale, after = balancer.observe(balancer.init(2), batch.replace(present=gone), None)
    assert not after["seen"][0] and scale[0] == 1 and np.isfinite(after["bank"]).all()


def test_bank_is_global_over_devices():
    balancer, batch = MWAM(), make_batch()
    weights, _, state = balancer.observe(balancer.init(2), batch, None)

    def split(x):
        return np.reshape(x, (8, -1, *np.shape(x)[1:]))

    mapped = jax.pmap(
        lambda batch: balancer.observe(balancer.init(2), batch, None), axis_name="data"
    )(jax.tree.map(split, batch))
    for device in (0, 7):
        np.testing.assert_allclose(mapped[2]["bank"][device], state["bank"], rtol=1e-5)
        np.testing.assert_allclose(mapped[0][device], weights, rtol=1e-5)


# Metrics, shares and constants


def waves_and_noise(rows=6, size=16, seed=0):
    """Slow waves with a little noise, and white noise of the same variance."""
    generator = np.random.default_rng(seed)
    phase = generator.uniform(0, 2 * np.pi, (rows, 1, 1, 1))
    along = np.linspace(0, np.pi, size)
    smooth = np.sqrt(2) * np.sin(along[:, None, None] + along[None, :, None] + phase)
    smooth = smooth + generator.normal(0, 0.05, smooth.shape)
    noise = generator.normal(size=smooth.shape)
    return {"noisy": noise.astype(np.float32), "smooth": smooth.astype(np.float32)}


@pytest.mark.parametrize("share", ["ratio_over_bank", "ratio_over_ratio", "bank_over_bank"])
@pytest.mark.parametrize(
    "fields",
    [
        {"metric": "robust"},
        {"metric": "robust", "transform": "fft"},
        {"metric": "official"},
        {"metric": "low_only"},
        {"metric": "weighted_sum"},
    ],
    ids=lambda fields: fields.get("transform", fields["metric"]),
)
def test_every_metric_and_share_slows_the_smooth_modality_down(fields, share):
    balancer = MWAM(share=share, **fields)
    state = balancer.init(2)
    for seed in range(2):
        weights, state = balancer.weigh(state, waves_and_noise(seed=seed))
    assert 0 < weights[1] < weights[0]
    assert state["share"][1] > 1 > state["share"][0] and np.isfinite(state["bank"]).all()


def test_direct_sum_runs_but_knows_no_order():
    # Orthonormal coefficients of equal variance: the sum of both bands says little.
    balancer = MWAM(metric="direct_sum")
    weights, state = balancer.weigh(balancer.init(2), waves_and_noise())
    assert np.isfinite(weights).all() and state["seen"].all()
    expected = [
        float(frequency_ratio(x, mode="direct_sum").mean()) for x in waves_and_noise().values()
    ]
    np.testing.assert_allclose(state["bank"], expected, rtol=1e-5)


def test_shares_are_ratio_or_bank_over_a_mean():
    ratio, bank, here = jnp.asarray([1.0, 5.0, 9.0]), jnp.asarray([2.0, 3.0, 4.0]), [True] * 3
    expected = {
        "ratio_over_bank": [1 / 3, 5 / 3, 3],
        "ratio_over_ratio": [1 / 5, 1, 9 / 5],
        "bank_over_bank": [2 / 3, 1, 4 / 3],
    }
    for share, values in expected.items():
        found = frequency_shares(ratio, bank, share=share, available=jnp.asarray(here))
        np.testing.assert_allclose(found, values, rtol=1e-5, err_msg=share)


def test_share_is_at_most_the_number_of_modalities_unless_it_is_ratio_over_bank():
    ratio, bank, here = (
        jnp.asarray([1e6, 0.0, 0.0]),
        jnp.asarray([1.0, 1.0, 1.0]),
        jnp.ones(3, bool),
    )
    found = {
        share: float(frequency_shares(ratio, bank, share=share, available=here)[0])
        for share in ("ratio_over_bank", "ratio_over_ratio")
    }
    assert found["ratio_over_bank"] > 1e5 and found["ratio_over_ratio"] == pytest.approx(3)
    # "robust" clips the share where it could be more: as if it were 3.
    free, clipped = (
        balance_weights(
            jnp.asarray([value, 0.0, 0.0]),
            bank,
            preset=Preset(share="ratio_over_bank", slope=0.5),
        )
        for value in (1e6, 3.0)
    )
    np.testing.assert_allclose(free, clipped, rtol=1e-5)


@pytest.mark.parametrize(
    ("preset", "expected"), [("official", 1.0), ("paper", 1.5 - 1 / (1 + np.exp(-1.8)))]
)
def test_weight_at_perfect_balance(preset, expected):
    # 1.5 - sigmoid(6 (1 - 0.7)) = 0.642: the paper's constants slow all branches down.
    found = balance_weights(jnp.ones(2), jnp.ones(2), preset=preset)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_constants_stand_in_the_preset_s_place():
    inputs, given = waves_and_noise(), (2.0, 1.5, 3.0, 0.5)
    for preset in PRESETS:
        balancer = MWAM(preset=preset, constants=given)
        weights, state = balancer.weigh(balancer.init(2), inputs)
        chosen = PRESETS[preset]._replace(
            **dict(zip(("alpha", "beta", "slope", "centre"), given, strict=True))
        )
        ratio = jnp.stack([frequency_ratio(inputs[n], mode=chosen.metric).mean() for n in inputs])
        expected = balance_weights(ratio, state["bank"], preset=chosen)
        np.testing.assert_allclose(weights, expected, rtol=1e-5)
        plain = MWAM(preset=preset)
        assert np.abs(weights - plain.weigh(plain.init(2), inputs)[0]).max() > 0.01


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "best"}, r"preset is 'best': choose one of \['robust', 'paper', 'official'\]"),
        ({"metric": "frm"}, "metric is 'frm': choose one of"),
        ({"share": "bank"}, "share is 'bank': choose one of"),
        ({"source": "weights"}, "source is 'weights': choose one of"),
        ({"intervention": "grad"}, "intervention is 'grad': choose one of"),
        ({"transform": "dwt"}, "transform is 'dwt': choose one of"),
        ({"flip": "none"}, "flip is 'none': choose one of"),
        ({"padding": "zero"}, "padding is 'zero': choose one of"),
        ({"preset": "paper", "transform": "fft"}, "metric 'official' is defined on DCT blocks"),
        ({"decay": 1.0}, r"decay is 1.0: it must be in \[0, 1\)"),
        ({"corner": 5}, "corner is 5: a block of 8 has corners of 1..4"),
        ({"constants": (1.5, 1.0)}, r"constants is \(1.5, 1.0\): give four"),
        ({"constants": (1.0, 1.5, 6.0, 1.0)}, "constants is .* with 0 <= beta <= alpha"),
        ({"constants": (1.5, 1.0, float("nan"), 1.0)}, "constants is"),
    ],
)
def test_wrong_words_and_constants_are_refused_at_init_in_one_line(fields, message):
    with pytest.raises(FusionError, match=f"^config.balancer.{message}") as refused:
        MWAM(**fields).init(2)
    assert "\n" not in str(refused.value)


def test_sizes_that_cannot_be_balanced_name_the_modality_and_the_cure():
    balancer = MWAM()
    inputs = waves_and_noise() | {"odd": np.zeros((6, 12, 16, 1), np.float32)}
    with pytest.raises(FusionError, match=r"frequency ratio of 'odd': .* use padding='edge' or"):
        balancer.weigh(balancer.init(3), inputs)
    inputs["odd"] = np.zeros((6, 4, 16, 1), np.float32)
    with pytest.raises(FusionError, match=r"ratio of 'odd': .* smaller than a block of 8"):
        balancer.weigh(balancer.init(3), inputs)


def test_modalities_and_batches_may_have_any_size_and_rank():
    generator = np.random.default_rng(0)
    balancer = MWAM(padding="edge")
    state = balancer.init(4)
    for rows in (1, 5):
        shapes = {"a": (112, 112, 3), "b": (28, 30, 1), "c": (3, 16, 16, 2), "d": (50,)}
        inputs = {
            name: generator.normal(size=(rows, *shape)).astype(np.float32)
            for name, shape in shapes.items()
        }
        weights, state = balancer.weigh(state, inputs)
    np.testing.assert_allclose(weights, 1, atol=0.4)
    assert state["seen"].all()


def test_weigh_is_observe_for_any_loop():
    batch = make_batch()
    present = batch.present.copy()
    present[::3, 1] = False
    batch = batch.replace(present=present)
    balancer = MWAM(preset="official", intervention="hybrid")
    ours, theirs = balancer.init(2), balancer.init(2)
    for _ in range(3):
        weights, ours = balancer.weigh(ours, batch.inputs, present=present, mask=batch.mask)
        losses, scale, theirs = balancer.observe(theirs, batch, None)
        for found in (losses, scale):
            np.testing.assert_array_equal(found, weights)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


# Controls


def test_permuted_gives_each_modality_the_weight_of_the_one_before():
    inputs = waves_and_noise() | {"texture": waves_and_noise(seed=1)["noisy"].cumsum(axis=1)}
    plain, permuted = MWAM(), MWAM(permuted=True)
    weights, state = plain.weigh(plain.init(3), inputs)
    moved, same = permuted.weigh(permuted.init(3), inputs)
    np.testing.assert_array_equal(moved, weights[jnp.asarray([2, 0, 1])])
    assert len(set(np.asarray(weights).tolist())) == 3
    # The bank is that of the modalities themselves.
    np.testing.assert_array_equal(state["bank"], same["bank"])


def test_fixed_scales_are_the_scales_of_every_step():
    balancer = FixedScales(scales=(0.5, 1.5))
    state = balancer.init(2)
    for seed in range(2):
        losses, scale, state = balancer.observe(state, make_batch(seed=seed), None)
        np.testing.assert_array_equal(scale, np.float32([0.5, 1.5]))
        np.testing.assert_array_equal(losses, 1)


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 1.0, 1.0), (1.0, -1.0), (1.0, float("nan"))])
def test_fixed_scales_of_another_number_are_refused(scales):
    with pytest.raises(FusionError, match=r"config.balancer.scales is .*: give 2 numbers from 0"):
        FixedScales(scales=scales).init(2)


# Feature maps


def test_features_of_real_encoders_are_a_source():
    encoders = {
        "cnn": CNNEncoder(widths=(4, 8), features=6, groups=2),
        "resnet": ResNetEncoder(width=4, features=6, groups=2),
        "vit": ViTEncoder(patch=(4, 4), width=8, depth=1, heads=2, features=6),
    }
    model = FusionModel(
        encoders=encoders,
        scheduler=StaticScheduler(),
        fusion=SumFusion(),
        head=ClassificationHead(3),
    )
    generator = np.random.default_rng(0)
    inputs = {name: np.float32(generator.normal(size=(4, 32, 32, 1))) for name in encoders}
    present = np.ones((4, 3), bool)
    present[1, 0] = False
    batch = Batch(
        inputs=inputs,
        present=np.ones((4, 3), bool),
        target=np.zeros(4, np.int32),
        mask=np.ones(4, bool),
        example_id=np.arange(4),
    )
    # Drawn parameters: initial ones would be a program to compile.
    shapes = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), inputs, present
    )
    variables = jax.tree.map(lambda x: np.float32(generator.normal(0, 0.3, x.shape)), shapes)
    output = jax.jit(functools.partial(model.apply, train=False))(variables, inputs, present)
    balancer = MWAM(source="features")
    weights, _, state = MWAM(source="features", intervention="hybrid").observe(
        balancer.init(3), batch, output
    )
    assert state["seen"].all() and len(set(np.asarray(weights).tolist())) == 3
    # By hand: the map of the CNN, 8 x 8 positions, over the rows that the model was given.
    grids = {name: value.grid for name, value in output.features.items()}
    assert grids == {"cnn": (8, 8), "resnet": (4, 4), "vit": (8, 8)}
    maps = output.features["cnn"].tokens.reshape(4, 8, 8, 6)
    expected = frequency_ratio(maps)[jnp.asarray([0, 2, 3])].mean()
    np.testing.assert_allclose(state["bank"][0], expected, rtol=1e-5)
    # Maps of 4 x 4 have blocks of 4.
    maps = output.features["resnet"].tokens.reshape(4, 4, 4, 6)
    expected = frequency_ratio(maps, block=4).mean()
    np.testing.assert_allclose(state["bank"][1], expected, rtol=1e-5)


def test_features_without_a_map_are_refused_by_name():
    features = {name: Features(pooled=jnp.ones((16, 6))) for name in ("noisy", "smooth")}
    output = ModelOutput(
        jnp.zeros((16, 3)),
        jnp.zeros((16, 2, 3)),
        FusionWeights(jnp.ones((16, 2)) / 2, jnp.zeros(16), {}),
        features,
        jnp.ones((16, 2), bool),
    )
    balancer = MWAM(source="features")
    with pytest.raises(FusionError, match="features of 'noisy' are no map: use source='input'"):
        balancer.observe(balancer.init(2), make_batch(), output)
    mlp, shape = MLPEncoder.example()
    made = jax.eval_shape(
        lambda key: mlp.init_with_output(key, jnp.zeros((2, *shape)), train=False)[0],
        jax.random.key(0),
    )
    with pytest.raises(FusionError, match="features of 'x' are no map"):
        feature_map("x", made)


# Inputs that break a ratio

BROKEN = {
    "nan": lambda x: np.where(np.arange(16) == 3, np.nan, x),
    "infinite": lambda x: np.where(np.arange(16) == 3, np.inf, x),
    "too large": lambda x: x * np.float32(1e38),
    "flat": lambda x: np.full_like(x, 3),
    "zero": np.zeros_like,
    "saturated": lambda x: np.clip(100 * x, -1, 1),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("preset", PRESETS)
def test_broken_inputs_keep_weights_finite_and_the_bank_clean(preset, kind):
    balancer = MWAM(preset=preset, intervention="hybrid")
    good = waves_and_noise()
    bad = good | {"noisy": np.float32(BROKEN[kind](np.moveaxis(good["noisy"], -1, 1))[:, 0])}
    bad["noisy"] = bad["noisy"].reshape(good["noisy"].shape)
    for order in ((bad, good), (good, bad, good)):
        state = balancer.init(2)
        for inputs in order:
            before = state
            weights, state = balancer.weigh(state, inputs)
            assert np.isfinite(weights).all() and (np.asarray(weights) > 0).all()
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
            if inputs is bad and kind in ("nan", "infinite"):
                assert weights[0] == 1 and state["bank"][0] == before["bank"][0]
                assert state["seen"][0] == before["seen"][0]
        assert state["seen"].all()


def test_robust_and_official_metrics_may_order_modalities_differently():
    # Half of "flat" is black and the rest is noise; "smooth" is low in frequency everywhere.
    inputs = waves_and_noise(size=32)
    inputs = {"flat": inputs["noisy"].copy(), "smooth": inputs["smooth"]}
    inputs["flat"][:, :, :16] = -1.5
    order = {}
    for preset in ("robust", "official"):
        balancer = MWAM(preset=preset)
        _, state = balancer.weigh(balancer.init(2), inputs)
        order[preset] = bool(state["bank"][0] > state["bank"][1])
    assert order == {"robust": False, "official": True}


# In a training step


def test_hybrid_weighs_the_unimodal_losses_of_the_model_s_own_head():
    batch = make_batch()
    balancer = MWAM(intervention="hybrid")
    weights, _, _ = balancer.observe(balancer.init(2), batch, None)
    unimodal = np.random.default_rng(0).normal(size=(16, 2, 3)).astype(np.float32)
    output = ModelOutput(
        jnp.zeros((16, 3)),
        jnp.asarray(unimodal),
        FusionWeights(jnp.ones((16, 2)) / 2, jnp.zeros(16), {}),
        {},
        jnp.ones((16, 2), bool),
    )
    task = Classification()
    loss, _, _ = Supervised(unimodal_weight=0.5)(
        {"corrupted": output}, {"corrupted": batch}, {}, task=task, loss_weights=weights
    )
    alone = [np.asarray(task.loss(output.unimodal[:, m], batch.target)) for m in range(2)]
    expected = np.log(3) + 0.5 * (weights[0] * alone[0] + weights[1] * alone[1])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert weights[0] != weights[1]


@pytest.fixture(scope="module")
def training():
    """MWAM hybrid with SGD, modality dropout, noise, unimodal losses and UDML: a compiled step."""
    names = ("noisy", "smooth")
    balancer = MWAM(intervention="hybrid")
    model = FusionModel(
        encoders={name: CNNEncoder(widths=(4, 8), features=6, groups=2) for name in names},
        scheduler=UDMLScheduler(),
        fusion=SumFusion(),
        head=ClassificationHead(2),
    )
    tx = SGD(learning_rate=0.05).build(
        num_steps=200,
        path_to_modality=lambda path: parameter_modality(path, names),
        modalities=names,
    )
    parts = {"model": model, "balancer": balancer, "objective": Supervised(unimodal_weight=0.5)}
    step = make_train_step(
        **parts,
        task=Classification(),
        recipe=Recipe(corruptions={"noisy": GaussianNoise(deviation=0.5)}, modality_dropout=0.3),
        tx=tx,
        num_steps=200,
    )
    batch = make_batch()
    batch = batch.replace(target=(batch.inputs["smooth"].mean(axis=(1, 2, 3)) > 0).astype(np.int32))
    state = create_state(**parts, tx=tx, example=batch, key=jax.random.key(0))
    traces = []

    def counted(state, batch):
        traces.append(1)
        return step(state, batch)

    return jax.jit(counted), state, batch, traces


def test_hybrid_trains_with_modality_dropout_unimodal_losses_and_a_scheduler(training):
    step, state, batch, traces = training
    losses = []
    for _ in range(60):
        state, metrics = step(state, batch)
        losses.append(float(metrics["task_loss"]))
    assert len(traces) == 1
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    assert {"update_scale", "balancer/bank", "balancer/share"} <= metrics.keys()
    for name in ("update_scale", "balancer/bank", "balancer/share"):
        assert metrics[name].shape == (2,) and np.isfinite(metrics[name]).all()
    assert metrics["update_scale"][1] < 1 < metrics["update_scale"][0]
    np.testing.assert_array_equal(metrics["balancer/bank"], state.balancer["bank"])


def test_bank_is_of_the_clean_inputs_not_of_dropped_corrupted_or_encoded_ones(training):
    step, state, batch, _ = training
    for _ in range(3):
        state, _ = step(state, batch)
        expected = [
            float(np.asarray(frequency_ratio(batch.inputs[name]))[:13].mean())
            for name in ("noisy", "smooth")
        ]
        # The same batch again and again: the bank is its ratio, whatever the model has learned.
        np.testing.assert_allclose(state.balancer["bank"], expected, rtol=1e-5)


def test_bank_is_saved_and_a_resumed_run_takes_the_same_steps_to_the_bit(training, tmp_path):
    step, state, batch, _ = training
    template = state
    for seed in range(3):
        state, _ = step(state, batch.replace(inputs=make_batch(seed=seed).inputs))
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(state, metrics={"selection": 0.5})
        checkpoints.wait()
        again = checkpoints.restore_last(template)
    for seed in range(3, 6):
        later = batch.replace(inputs=make_batch(seed=seed).inputs)
        state, metrics = step(state, later)
        again, same = step(again, later)
        for x, y in zip(jax.tree.leaves(metrics), jax.tree.leaves(same), strict=True):
            np.testing.assert_array_equal(x, y)
        for name in state.balancer:
            np.testing.assert_array_equal(state.balancer[name], again.balancer[name])
    assert int(digest(state)) == int(digest(again))
    assert int(digest(state)) != int(digest(template))


def test_step_refuses_a_site_that_no_optimiser_has(training):
    with pytest.raises(FusionError, match=r"config.balancer.site is 'grad': choose one of"):
        make_train_step(
            model=None,
            task=None,
            objective=None,
            balancer=FixedScales(site="grad"),
            recipe=Recipe(),
            tx=None,
            num_steps=1,
        )
