"""Checkpoints with real faults: damaged and deleted files, another model, a folder that is gone."""

import contextlib
import dataclasses
import gc
import logging
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fusion_jax.errors import FusionError
from fusion_jax.training.checkpoints import Checkpoints, digest
from fusion_jax.types import TrainState

# Files of a step that hold the state and its record: damage to them must never pass. Others are
# Orbax's notes, which restoring does not need; none of them may change what comes back.
ESSENTIAL = ("record/metadata", "state/manifest.ocdbt")


def make_state(step: int, seed: int = 0) -> TrainState:
    """A small state with every kind of leaf: two float widths, bools, two integer widths, a key.

    `embedding` is larger than what TensorStore keeps inside its index, so its bytes lie in a file
    without a checksum of TensorStore's own.
    """
    generator = np.random.default_rng([seed, step])

    def floats(*shape):
        return jnp.asarray(generator.normal(size=shape), jnp.float32)

    return TrainState(
        step=jnp.int32(step),
        params={"dense": {"kernel": floats(5, 7), "half": floats(9).astype(jnp.bfloat16)}},
        collections={
            "scheduler": {
                "on": jnp.asarray(generator.integers(0, 2, 13), bool),
                "count": jnp.asarray(generator.integers(-9, 9, 2), jnp.int32),
                "small": jnp.asarray(generator.integers(-9, 9, 3), jnp.int8),
            },
            "nothing": {},
        },
        opt_state=({}, [floats(3, 4), floats()], {"embedding": floats(64, 16)}),
        balancer={},
        objective={},
        key=jax.random.key(seed),
    )


def leaves(state: TrainState) -> dict[str, np.ndarray]:
    """Path -> array of each leaf; the key as its numbers."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        found[jax.tree_util.keystr(path)] = np.asarray(
            jax.random.key_data(leaf) if is_key else leaf
        )
    return found


def assert_same(a: TrainState, b: TrainState) -> None:
    """Structure, types, shapes and every bit are the same."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    left, right = leaves(a), leaves(b)
    for path, value in left.items():
        assert (value.dtype, value.shape) == (right[path].dtype, right[path].shape), path
        assert value.tobytes() == right[path].tobytes(), path


@contextlib.contextmanager
def opened(folder: Path, *, read_only: bool = False):
    """Checkpoints that are closed at the end."""
    with contextlib.closing(Checkpoints(folder, read_only=read_only)) as checkpoints:
        yield checkpoints


def save_all(folder: Path, scores: list[float | None], first: int = 1) -> None:
    """Save one state per score, at steps first, first + 1, ..."""
    with opened(folder) as checkpoints:
        for step, score in enumerate(scores, start=first):
            metrics = None if score is None else {"selection": score, "nll": float("nan")}
            checkpoints.save(make_state(step), metrics=metrics)


def steps_in(folder: Path) -> set[str]:
    """Names of the folders of checkpoints, finished or not."""
    return {path.name for path in folder.iterdir()}


# Saving and restoring


def test_round_trip_is_bit_exact(tmp_path):
    save_all(tmp_path, [0.5])
    with opened(tmp_path, read_only=True) as checkpoints:
        state = checkpoints.restore_last(make_state(0, seed=9))
    assert_same(state, make_state(1))
    assert jax.random.key_impl(state.key) == jax.random.key_impl(jax.random.key(0))
    # The key draws the same numbers.
    assert jax.random.bits(state.key) == jax.random.bits(jax.random.key(0))


def test_restores_to_the_placement_of_the_template(tmp_path):
    everywhere = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec())
    save_all(tmp_path, [0.5])
    template = jax.device_put(make_state(0), everywhere)
    with opened(tmp_path, read_only=True) as checkpoints:
        state = checkpoints.restore_last(template)
    assert {leaf.sharding for leaf in jax.tree.leaves(state)} == {everywhere}
    assert_same(state, make_state(1))


def test_empty_folder_has_no_last_and_no_best(tmp_path):
    with opened(tmp_path / "new") as checkpoints:
        assert checkpoints.restore_last(make_state(0)) is None
        with pytest.raises(FusionError, match="no validated checkpoint: train the run first"):
            checkpoints.restore_best(make_state(0))
    with pytest.raises(FusionError, match="missing: train the run first"):
        Checkpoints(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_step_is_saved_once(tmp_path):
    """Orbax skips such a save without a word; a lost checkpoint must not pass for a saved one."""
    save_all(tmp_path, [0.5])
    with opened(tmp_path) as checkpoints:
        with pytest.raises(FusionError, match="step 1 or later already"):
            checkpoints.save(make_state(1, seed=5), metrics=None)
        assert_same(checkpoints.restore_last(make_state(0)), make_state(1))


# The digest


@pytest.mark.parametrize("path", list(leaves(make_state(3))))
def test_one_flipped_bit_in_any_leaf_changes_the_digest(path):
    state = make_state(3)
    flat, structure = jax.tree.flatten(state)
    index = list(leaves(state)).index(path)
    before = int(digest(state))
    bits = np.frombuffer(leaves(state)[path].tobytes(), np.uint8)
    is_bool = flat[index].dtype == bool
    # Of a bool there is one bit; of others any.
    numbers = range(len(bits)) if is_bool else range(8 * len(bits))
    drawn = random.Random(path).sample(numbers, min(len(numbers), 24))
    for number in {numbers[0], numbers[-1], *drawn}:
        flipped = bits.copy()
        byte, bit = (number, 0) if is_bool else divmod(number, 8)
        flipped[byte] ^= 1 << bit
        value = np.frombuffer(flipped.tobytes(), leaves(state)[path].dtype)
        value = jnp.asarray(value.reshape(leaves(state)[path].shape))
        is_key = jnp.issubdtype(flat[index].dtype, jax.dtypes.prng_key)
        changed = [*flat]
        changed[index] = jax.random.wrap_key_data(value) if is_key else value
        assert int(digest(structure.unflatten(changed))) != before, number


def test_digest_does_not_depend_on_sharding():
    state = make_state(3)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows, everywhere = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec())
    )

    def place(leaf):
        return jax.device_put(leaf, rows if leaf.ndim and len(leaf) % 8 == 0 else everywhere)

    placed = jax.tree.map(place, state)
    assert rows in {leaf.sharding for leaf in jax.tree.leaves(placed)}
    assert int(digest(placed)) == int(digest(state))


# What is kept, and which is the best


@pytest.mark.parametrize(
    ("scores", "kept", "best"),
    [
        ([0.1, 0.9, 0.3, 0.2, 0.4], {"2", "4", "5"}, 2),
        ([0.5, 0.5, 0.1, 0.1, 0.1], {"2", "4", "5"}, 2),  # Of equals the later.
        ([0.1, 0.2, 0.3, 0.4], {"3", "4"}, 4),
        ([0.2, None, None, None], {"1", "3", "4"}, 1),  # Never the best without metrics.
        ([-1.0, None, None, None], {"1", "3", "4"}, 1),
    ],
)
def test_best_and_last_two_are_kept(tmp_path, scores, kept, best):
    save_all(tmp_path, scores)
    assert steps_in(tmp_path) == kept
    with opened(tmp_path, read_only=True) as checkpoints:
        assert_same(checkpoints.restore_best(make_state(0)), make_state(best))
        assert_same(checkpoints.restore_last(make_state(0)), make_state(len(scores)))
        assert checkpoints.metrics(best)["selection"] == scores[best - 1]
        if scores[-1] is None:
            assert checkpoints.metrics(len(scores)) == {}


def test_best_survives_a_restart(tmp_path):
    """The scores are read again, so that later saves do not delete the best."""
    save_all(tmp_path, [0.1, 0.9, 0.2])
    save_all(tmp_path, [0.3, 0.4], first=4)
    assert steps_in(tmp_path) == {"2", "4", "5"}
    save_all(tmp_path, [None, 0.9], first=6)
    assert steps_in(tmp_path) == {"6", "7"}  # The tie goes to the later, and 2 may go.
    with opened(tmp_path, read_only=True) as checkpoints:
        assert_same(checkpoints.restore_best(make_state(0)), make_state(7))


def test_states_without_metrics_are_never_the_best(tmp_path):
    save_all(tmp_path, [None, None])
    with opened(tmp_path, read_only=True) as checkpoints:
        with pytest.raises(FusionError, match="no validated checkpoint"):
            checkpoints.restore_best(make_state(0))
        assert_same(checkpoints.restore_last(make_state(0)), make_state(2))


# Another model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"params": {"dense": {"kernel": jnp.zeros((5, 8)), "half": jnp.zeros(9, "bfloat16")}}},
            "params.dense.kernel is float32[5, 7] there, float32[5, 8] in this model",
        ),
        (
            {"params": {"dense": {"kernel": jnp.zeros((5, 7)), "half": jnp.zeros(9)}}},
            "params.dense.half is bfloat16[9] there, float32[9] in this model",
        ),
        (
            {"balancer": {"bank": jnp.zeros(2)}},
            "balancer.bank is absent there, float32[2] in this model",
        ),
        (
            {"collections": {"nothing": {}}},
            "collections.scheduler.count is int32[2] there, absent in this model",
        ),
    ],
)
def test_checkpoint_of_another_model_is_refused_by_path(tmp_path, change, message):
    save_all(tmp_path, [0.5, 0.5])
    template = dataclasses.replace(make_state(0), **change)
    with opened(tmp_path) as checkpoints:
        for restore in (checkpoints.restore_last, checkpoints.restore_best):
            with pytest.raises(FusionError) as caught:
                restore(template)
            assert str(caught.value).endswith(message)
            assert "is of another model" in str(caught.value)
    assert steps_in(tmp_path) == {"1", "2"}


# Damage


def damages(content: bytes, count: int, seed: str):
    """Name and damaged content (None: deleted) of a file, with `count` single flipped bits."""
    yield "deleted", None
    yield "truncated", content[: len(content) // 2]
    yield "emptied", b""
    generator = random.Random(seed)
    for number in generator.sample(range(8 * len(content)), min(count, 8 * len(content))):
        flipped = bytearray(content)
        flipped[number // 8] ^= 1 << number % 8
        yield f"bit {number}", bytes(flipped)


def warnings_of_ours(caplog) -> list[str]:
    """What was logged, without Orbax's own messages."""
    return [
        record.getMessage() for record in caplog.records if record.name.startswith("fusion_jax")
    ]


def check_damage(folder: Path, caplog, *, flips: int) -> dict[str, set[str]]:
    """Damage every file of step 3 in turn; path -> outcomes, "same" or "refused"."""
    outcomes: dict[str, set[str]] = {}
    files = [path for path in sorted((folder / "3").rglob("*")) if path.is_file()]
    for file in files:
        content = file.read_bytes()
        name = str(file.relative_to(folder / "3"))
        for kind, damaged in damages(content, flips, seed=name):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            caplog.clear()
            with opened(folder, read_only=True) as checkpoints:
                last = checkpoints.restore_last(make_state(0, seed=9))
                best = checkpoints.restore_best(make_state(0, seed=9))
            # Never a third state: what comes back is what was saved, of step 3 or of the step
            # before, and the latter never in silence.
            for state in (last, best):
                assert_same(state, make_state(int(state.step)))
            assert int(last.step) == int(best.step), (name, kind)
            warned = warnings_of_ours(caplog)
            if int(last.step) == 3:
                assert not warned, (name, kind)
            else:
                assert int(last.step) == 2, (name, kind)
                assert len(warned) == 1, (name, kind)
                assert warned[0].startswith(f"checkpoint of step 3 in {folder} is damaged (")
                assert "\n" not in warned[0]
            outcomes.setdefault(name, set()).add("same" if int(last.step) == 3 else "refused")
            file.write_bytes(content)
    return outcomes


# Where one of its own notes is damaged, Orbax leaves coroutines behind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.slow
def test_damage_to_any_file_is_noticed_or_harmless(tmp_path, caplog, monkeypatch):
    save_all(tmp_path, [0.1, 0.2, 0.3])
    monkeypatch.setattr(logging.getLogger("asyncio"), "disabled", True)
    outcomes = check_damage(tmp_path, caplog, flips=30)
    for _ in range(5):  # What asyncio has to say, it says now: like pytest at the end of a session.
        gc.collect()
    for name in ESSENTIAL:
        assert outcomes[name] == {"refused"}, name
    # The index and the arrays themselves lie in files with random names.
    assert {"refused"} in [found for name, found in outcomes.items() if "/d/" in name]
    assert len(outcomes) > 10


def test_the_step_of_a_damaged_checkpoint_is_saved_anew(tmp_path, caplog):
    """Orbax skips, without a word, a step that is not after all that it knows."""
    save_all(tmp_path, [0.1, 0.2, 0.3])
    for file in (tmp_path / "3" / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-40])
    with opened(tmp_path) as checkpoints:
        state = checkpoints.restore_last(make_state(0))
        assert_same(state, make_state(2))
        assert steps_in(tmp_path) == {"2"}
        checkpoints.save(make_state(3, seed=7), metrics={"selection": 0.3})
    assert len(warnings_of_ours(caplog)) == 1
    assert "checkpoint of step 3" in caplog.text
    with opened(tmp_path, read_only=True) as checkpoints:
        assert_same(checkpoints.restore_last(make_state(0)), make_state(3, seed=7))
        assert_same(checkpoints.restore_best(make_state(0)), make_state(3, seed=7))


def test_damaged_best_falls_back_to_the_next_best(tmp_path, caplog):
    save_all(tmp_path, [0.9, 0.1, 0.5])
    record = tmp_path / "1" / "record" / "metadata"
    record.write_bytes(record.read_bytes().replace(b"0.9", b"0.8"))
    with opened(tmp_path, read_only=True) as checkpoints:
        assert_same(checkpoints.restore_best(make_state(0)), make_state(3))
        assert checkpoints.metrics(1) == {}
    assert caplog.text.count("checkpoint of step 1") == 1
    assert "does not match its checksum" in caplog.text


def test_state_that_differs_from_its_digest_is_refused(tmp_path, caplog):
    """Whole files of another save: every checksum of TensorStore agrees, the digest does not."""
    save_all(tmp_path / "a", [0.1, 0.2])
    with opened(tmp_path / "b") as checkpoints:
        checkpoints.save(make_state(2, seed=4), metrics={"selection": 0.2})
    shutil.rmtree(tmp_path / "a" / "2" / "state")
    shutil.copytree(tmp_path / "b" / "2" / "state", tmp_path / "a" / "2" / "state")
    with opened(tmp_path / "a", read_only=True) as checkpoints:
        assert_same(checkpoints.restore_last(make_state(0)), make_state(1))
    assert "its contents do not match its digest" in caplog.text


def test_all_damaged_is_one_error_and_nothing_is_deleted(tmp_path, caplog):
    save_all(tmp_path, [0.1, 0.2])
    for step in ("1", "2"):
        (tmp_path / step / "state" / "manifest.ocdbt").unlink()
    with opened(tmp_path) as checkpoints:
        for restore in (checkpoints.restore_last, checkpoints.restore_best):
            with pytest.raises(FusionError) as caught:
                restore(make_state(0))
            assert str(caught.value) == (
                f"every checkpoint in {tmp_path} is damaged: restore the folder or train again"
            )
    assert steps_in(tmp_path) == {"1", "2"}
    assert len(warnings_of_ours(caplog)) == 2


def test_half_written_checkpoint_is_ignored_and_cleaned_up(tmp_path):
    save_all(tmp_path, [0.1, 0.2])
    half = tmp_path / "3.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "2", half)
    (half / "state" / "manifest.ocdbt").unlink()
    with opened(tmp_path, read_only=True) as checkpoints:
        assert_same(checkpoints.restore_last(make_state(0)), make_state(2))
    assert half.exists()  # Reading changes nothing: a run may be writing there.
    with opened(tmp_path) as checkpoints:
        assert_same(checkpoints.restore_last(make_state(0)), make_state(2))
        checkpoints.save(make_state(3), metrics=None)
    assert steps_in(tmp_path) == {"2", "3"}


def test_failure_to_write_is_one_error(tmp_path):
    """The folder is gone under the run: a file stands in its place."""
    folder = tmp_path / "run"
    save_all(folder, [0.1])
    checkpoints = Checkpoints(folder)
    folder.rename(tmp_path / "away")
    folder.write_text("")
    with pytest.raises(FusionError) as caught:
        checkpoints.save(make_state(2), metrics=None)
        checkpoints.wait()
    assert "cannot save" in str(caught.value)
    assert str(caught.value).endswith(
        "run the same command again; the checkpoints before it are intact"
    )
    assert "\n" not in str(caught.value)
    checkpoints.close()
    with opened(tmp_path / "away", read_only=True) as again:
        assert_same(again.restore_last(make_state(0)), make_state(1))
