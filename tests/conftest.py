"""Settings of every test: 8 virtual CPU devices, strict ranks, no reuse of random keys."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.types import Batch, Features, SchedulerInput

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

ROOT = Path(__file__).parent.parent
NAMES = ("acoustic", "depth", "image", "motion", "text")

# Begun first: modules of few and long tests would else be left for the end, with one worker alone.
LONG = ("test_readme", "test_real_data", "test_notebooks", "test_strategies", "test_hosts")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long modules before the others, which stay in their order."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture
def key():
    """A root random key."""
    return jax.random.key(7)


def make_present(rows: int, num: int, seed: int = 0) -> np.ndarray:
    """Bool[rows, num] with every pattern among the first rows; the last row has nothing present."""
    patterns = np.array([[bool(i >> m & 1) for m in range(num)] for i in range(1, 2**num)])
    drawn = patterns[np.random.default_rng(seed).permutation(len(patterns))]
    present = np.resize(drawn, (rows, num))
    present[-1] = False
    return present


def make_features(rows: int, num: int, width: int = 6, seed: int = 0) -> dict[str, Features]:
    """Random features of `num` modalities, with tokens."""
    generator = np.random.default_rng(seed)
    made = {}
    for name in NAMES[:num]:
        tokens = generator.normal(size=(rows, 4, width)).astype(np.float32)
        made[name] = Features(pooled=jnp.asarray(tokens.mean(axis=1)), tokens=jnp.asarray(tokens))
    return made


def make_scheduler_input(
    rows: int = 9, num: int = 2, classes: int = 4, seed: int = 0
) -> SchedulerInput:
    """An input with every present pattern, a padding row, and a linear head as `predict`."""
    features = make_features(rows, num, seed=seed)
    generator = np.random.default_rng(seed + 1)
    # The head belongs to the name, not to the position, so that renaming keeps the model the same.
    heads = {
        name: jnp.asarray(generator.normal(size=(6, classes)), jnp.float32) for name in features
    }

    def predict(subsets):
        parts = jnp.stack(
            [features[name].pooled @ heads[name] for name in sorted(features)], axis=-2
        )
        return jnp.sum(jnp.where(subsets[..., None], parts, 0), axis=-2)

    return SchedulerInput(
        features=features,
        present=jnp.asarray(make_present(rows, num, seed)),
        mask=jnp.arange(rows) < rows - 1,
        progress=0.5,
        predict=predict,
        frequency_ratio=jnp.asarray(generator.uniform(1, 9, (rows, num)), jnp.float32),
        noise_level=jnp.asarray(
            generator.uniform(0, 2, (rows, num)) * generator.integers(0, 2, (rows, num)),
            jnp.float32,
        ),
    )


def make_batch(
    rows: int = 8, *, valid: int | None = None, missing: bool = True, seed: int = 0
) -> Batch:
    """A batch of two vector modalities with missing inputs and, if asked, padding rows."""
    generator = np.random.default_rng(seed)
    present = np.ones((rows, 2), bool)
    if missing:
        present[::3, 0] = False
        present[1::4, 1] = False
        present[~present.any(axis=1), 0] = True
    return Batch(
        inputs={
            "left": generator.normal(size=(rows, 5)).astype(np.float32),
            "right": generator.normal(size=(rows, 3)).astype(np.float32),
        },
        present=present,
        target=generator.integers(0, 3, rows).astype(np.int32),
        mask=np.arange(rows) < (rows if valid is None else valid),
        example_id=np.arange(rows, dtype=np.int32) + 100,
    )


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder that FUSION_JAX_DATA names: a test is skipped only where the variable is not set."""
    value = os.environ.get("FUSION_JAX_DATA")
    if not value:
        pytest.skip("FUSION_JAX_DATA is not set: it names the folder of the real data sets")
    folder = Path(value).expanduser().resolve()
    if not folder.is_dir():
        pytest.fail(f"FUSION_JAX_DATA names {folder}, which is no folder")
    return folder


@pytest.fixture(scope="session")
def program_environment(tmp_path_factory) -> dict[str, str]:
    """Environment of programs that tests start: the real devices, one compilation cache."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return kept | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled"))}
