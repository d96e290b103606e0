"""The README's commands and code run as written."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fusion_jax.encoders.resnet import ResNetEncoder
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.schedulers.udml import UDMLScheduler
from fusion_jax.tasks.classification import ClassificationHead

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
CODE = [text for kind, text in BLOCKS if kind == "python"]
PREDICT, FUNCTION, UDML, MA_AFS, LINEN, NNX, OWN = CODE
# The full audio-visual MNIST run takes a quarter of an hour a seed: here its length alone is cut.
SHORTER = {
    "train.py --config=configs/av_mnist.py": "--config.num_steps=60 --config.eval_every=30 "
    "--config.data.limit=3000",
    "configs/av_mnist.py:mwam": "--config.num_steps=20 --config.eval_every=20 "
    "--config.data.limit=3000",
    "--config.parallel.strategy": "--config.num_steps=20 --config.eval_every=20",
    "--config.accumulation": "--config.num_steps=20 --config.eval_every=20",
}


def test_readme_has_what_is_tested():
    assert len(COMMANDS) == 9
    for text in CODE:
        ast.parse(text)


def test_readme_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_readme_says_what_must_be_plain():
    assert "the audio is synthetic" in README
    assert "pickle" in README and "TensorFlow and PyTorch are not in it" in README


def run(command: str, folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the project to run in, with this environment as its .venv."""
    folder = tmp_path_factory.mktemp("readme") / "project"
    folder.mkdir()
    for name in ("train.py", "eval.py", "configs", "fusion_jax"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.slow
def test_readme_runs_as_written(copy, real_data):
    for command in COMMANDS:
        if command == "make train":
            # What `make train` does after installing; .ci/run and users call make itself.
            run("python train.py --config=configs/av_digits.py --workdir=runs/av_digits", copy)
            run("python eval.py --workdir=runs/av_digits", copy)
            continue
        for start, options in SHORTER.items():
            if start in command:
                command = f"{command} {options}"
        out = run(command, copy)
        if "eval.py" in command:
            assert "clean accuracy" in out
    assert (copy / "runs/av_digits/report.html").stat().st_size > 10_000
    (copy / "predict.py").write_text(PREDICT)
    printed = run("python predict.py", copy)
    assert re.search(r"\[\[0\. +1\.\]\]", printed), printed
    (copy / "function.py").write_text(FUNCTION + '\nprint(report["cells"][0]["accuracy"])\n')
    assert float(run("python function.py", copy).strip().splitlines()[-1]) > 0.6
    own = OWN + "\nfrom fusion_jax.evaluate import evaluate\n"
    own += 'report = evaluate("runs/mine", data=data)\nprint(report["cells"][0]["accuracy"])\n'
    (copy / "own.py").write_text(own)
    assert float(run("python own.py", copy).strip().splitlines()[-1]) > 0.6


NAMES = ("depth", "rgb")


def two_streams(rows=32):
    """Smooth depth and noisy colour that both tell the label."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, rows)
    smooth = np.broadcast_to(np.linspace(-1, 1, 16), (rows, 16, 16)) * (labels[:, None, None] - 1)
    noisy = generator.normal(size=(rows, 16, 16)) + labels[:, None, None]
    images = {"depth": smooth, "rgb": noisy}
    return {name: jnp.asarray(x[..., None], jnp.float32) for name, x in images.items()}, labels


def check_scaled(before, after, weights):
    """Adam's first step is as large as the learning rate: the encoders' is scaled, the head's is
    not."""
    moved = {name: float(np.abs(after[name] - before[name]).max()) for name in before}
    assert weights[0] < 1 < weights[1]  # the smooth modality is slowed down
    depth, rgb = (1e-3 * float(weight) for weight in weights)
    expected = {"depth": depth, "rgb": rgb, "head": 1e-3}
    assert moved == pytest.approx(expected, rel=1e-2)


# A model and a training step of two streams without any scheduler.
PLAIN = """
xent = optax.softmax_cross_entropy_with_integer_labels


class Model(nn.Module):
    @nn.compact
    def __call__(self, batch, *, train):
        codes = {name: Encoder(name=name)(batch[name]) for name in ("depth", "rgb")}
        head, stack = nn.Dense(3, name="head"), jnp.stack([*codes.values()], axis=1)
        return head(stack.sum(axis=1))


@jax.jit
def train_step(params, state, opt_state, batch):
    def loss(params):
        full, changing, label = {"params": params, **state}, list(state), batch["label"]
        logits, after = model.apply(full, batch, train=True, mutable=changing)
        every = xent(logits, label)
        return jnp.mean(every), after

    grads, state = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), state, opt_state
"""


def check_marked_lines(text, number):
    """Exactly the lines that the plain loop does not have are marked, and so many."""
    plain = PLAIN.splitlines()
    new = [line for line in text.splitlines() if line not in plain]
    assert new == [line for line in text.splitlines() if line.endswith("  #")]
    assert len(new) == number


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(16)(nn.gelu(nn.Dense(32)(x.reshape(len(x), -1))))


def own_loop(text, batch):
    """What the text defines with Adam at hand, and the variables before training."""
    space = {"jax": jax, "jnp": jnp, "nn": nn, "optax": optax, "Encoder": Encoder}
    exec(text, space)
    space["model"], space["tx"] = space["Model"](), optax.adam(3e-3)
    state = space["model"].init(jax.random.key(0), batch, train=False)
    return space, state.pop("params"), state


def plain_prediction(params, batch):
    """What the same model without a scheduler predicts."""
    stack = sum(Encoder().apply({"params": params[name]}, batch[name]) for name in NAMES)
    return nn.Dense(3).apply({"params": params["head"]}, stack)


def parameters_of_host(scheduler, probabilistic=False):
    """Number of parameters of two ResNet-18 encoders, a scheduler, a sum and a head."""
    model = FusionModel(
        encoders={name: ResNetEncoder(probabilistic=probabilistic) for name in NAMES},
        scheduler=scheduler,
        fusion=SumFusion(),
        head=ClassificationHead(num_classes=10),
    )
    images = {name: jnp.zeros((1, 16, 16, 3)) for name in NAMES}
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    shapes = jax.eval_shape(
        lambda: model.init(keys, images, jnp.ones((1, 2), bool), train=False)["params"]
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_readme_says_how_many_parameters_udml_adds():
    host = parameters_of_host(StaticScheduler())
    exponents = 2
    for probabilistic in (False, True):
        added = parameters_of_host(UDMLScheduler(), probabilistic) - host - exponents
        said = f"{added:,} parameters ({100 * added / host:.2f} %)"
        assert said in README


def noisy_streams(rows=64, seed=1):
    """Clean images in the first half of the rows, noisy colour in the second; noise levels [B, M].

    Both streams tell the label.
    """
    generator = np.random.default_rng(seed)
    clean, labels = two_streams(rows)
    level = np.zeros((rows, 2), np.float32)
    level[rows // 2 :, 1] = 3.0
    noise = level[:, 1, None, None, None] * generator.normal(size=clean["rgb"].shape)
    return clean | {"rgb": jnp.asarray(clean["rgb"] + noise, jnp.float32)}, level, labels


def test_readme_udml_in_a_linen_loop_of_ones_own():
    check_marked_lines(UDML, 8)  # as the text says
    images, level, labels = noisy_streams()
    space, params, state = own_loop(UDML, images)
    apply = space["model"].apply
    before, fusion = apply({"params": params, **state}, images, train=False)
    np.testing.assert_allclose(fusion.weights, 0.5)
    np.testing.assert_allclose(before, plain_prediction(params, images), rtol=1e-4, atol=1e-5)
    share, opt_state = np.asarray(jax.tree.leaves(state)[0]), space["tx"].init(params)
    batch = images | {"noise_level": level, "label": labels}
    for _ in range(150):
        params, state, opt_state = space["train_step"](params, state, opt_state, batch)
    after, fusion = apply({"params": params, **state}, images, train=False)
    assert (np.argmax(after, axis=-1) == labels).mean() > 0.9
    colour = np.asarray(fusion.weights[:, 1])
    # The noise is not told here: what is noisy has lost weight to what is clean.
    assert colour[32:].mean() < colour[:32].mean() - 0.1
    # Dependence was measured; both streams tell the label, so it stays near 1.
    assert 1e-3 < np.abs(np.asarray(jax.tree.leaves(state)[0]) - share).max() < 0.5


@pytest.mark.slow
def test_readme_ma_afs_in_a_linen_loop_of_ones_own():
    check_marked_lines(MA_AFS, 10)  # as the text says
    images, _, labels = noisy_streams()
    space, params, state = own_loop(MA_AFS, images)
    apply = space["model"].apply
    before, _, weights = apply({"params": params, **state}, images, train=False)
    np.testing.assert_allclose(weights, 0.5)
    np.testing.assert_allclose(before, plain_prediction(params, images), rtol=1e-4, atol=1e-5)
    opt_state = space["tx"].init(params)
    # The noise is another one in every step: what is learned by heart says nothing of quality.
    for step in range(150):
        batch = noisy_streams(seed=2 + step)[0] | {"label": labels}
        params, state, opt_state = space["train_step"](params, state, opt_state, batch)
    after, _, weights = apply({"params": params, **state}, images, train=False)
    assert (np.argmax(after, axis=-1) == labels).mean() > 0.9
    colour = np.asarray(weights[:, 1])
    # Nobody told which rows are noisy.
    assert colour[32:].mean() < colour[:32].mean() - 0.02


def test_readme_mwam_in_a_linen_loop_of_ones_own():
    class TwoStreams(nn.Module):
        @nn.compact
        def __call__(self, images):
            parts = [nn.Dense(4, name=n)(images[n].reshape(len(images[n]), -1)) for n in NAMES]
            return nn.Dense(3, name="head")(jnp.concatenate(parts, axis=-1))

    images, labels = two_streams()
    model = TwoStreams()

    def loss(params, images, labels):
        logits = model.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    assert sum("#" in line for line in LINEN.splitlines()) == 7  # as the text says
    space = {"jax": jax, "optax": optax, "loss": loss}
    exec(LINEN, space)
    params = model.init(jax.random.key(0), images)["params"]
    weights, _ = space["mwam"].weigh(space["mwam"].init(2), images)

    def kernels(tree):
        return {name: np.asarray(tree[name]["kernel"]) for name in tree}

    state, opt_state, bank = params, space["tx"].init(params), space["mwam"].init(2)
    first = loss(params, images, labels)
    for step in range(30):
        state, opt_state, bank = space["train_step"](state, opt_state, bank, images, labels)
        if step == 0:
            kernels = (
                {name: np.asarray(tree[name]["kernel"]) for name in tree}
                for tree in (params, state)
            )
            check_scaled(*kernels, weights)
    assert loss(state, images, labels) < first and bank["seen"].all()


def test_readme_mwam_in_an_nnx_loop_of_ones_own():
    class TwoStreams(nnx.Module):
        def __init__(self, rngs):
            for name in NAMES:
                setattr(self, name, nnx.Linear(256, 4, rngs=rngs))
            self.head = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, images):
            parts = [getattr(self, n)(images[n].reshape(len(images[n]), -1)) for n in NAMES]
            return self.head(jnp.concatenate(parts, axis=-1))

    images, labels = two_streams()
    model = TwoStreams(nnx.Rngs(0))

    def loss(model, images, labels):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    space = {"jax": jax, "optax": optax, "nnx": nnx, "loss": loss, "model": model}
    exec(LINEN + NNX, space)
    bank, first = space["mwam"].init(2), loss(model, images, labels)
    weights, _ = space["mwam"].weigh(bank, images)

    def kernels():
        return {n: np.asarray(getattr(model, n).kernel[...]) for n in (*NAMES, "head")}

    before = kernels()
    bank = space["train_step"](model, space["optimizer"], bank, images, labels)
    check_scaled(before, kernels(), weights)
    for _ in range(30):
        bank = space["train_step"](model, space["optimizer"], bank, images, labels)
    assert loss(model, images, labels) < first and bank["seen"].all()
