"""Every program compiles for TPU v5e and v5p, and its devices exchange what they should."""

import functools
import importlib.util
import math
from pathlib import Path

import jax
import pytest

from fusion_jax.config import Config, Parallel, Recipe, read_json
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.encoders.cnn import CNNEncoder
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.errors import FusionError
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel
from fusion_jax.runs import state_shapes
from fusion_jax.schedulers.udml import UDMLScheduler
from fusion_jax.sources import ArraySpec, DataSpec
from fusion_jax.tasks.classification import ClassificationHead
from fusion_jax.training.parallel import make_strategy

ROOT = Path(__file__).parent.parent
ROWS = 64
SPEC = DataSpec({"audio": ArraySpec((128,), "float32"), "image": ArraySpec((8, 8, 1), "uint8")}, 10)
# Four chips of one host, and eight of two.
TOPOLOGIES = ["v5e:2x2", "v5p:2x2x2"]
STRATEGIES = ["jit", "fsdp", "pmap"]


@pytest.fixture(scope="module")
def tpu():
    spec = importlib.util.spec_from_file_location("tpu", ROOT / "benchmarks" / "tpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_config(strategy: str) -> Config:
    return Config(
        model=FusionModel(
            encoders={
                "audio": MLPEncoder(hidden=(64,), features=32),
                "image": CNNEncoder(widths=(8, 16), features=32, groups=4),
            },
            scheduler=UDMLScheduler(),
            fusion=SumFusion(),
            head=ClassificationHead(10),
        ),
        data=None,
        recipe=Recipe(corruptions={name: GaussianNoise(deviation=1.0) for name in SPEC.names}),
        parallel=Parallel(strategy, min_shard_size=1024),
        batch_size=ROWS,
        eval_batch_size=ROWS,
    )


@pytest.fixture(scope="module")
def compiled(tpu):
    """(topology, program, strategy) -> what is known of it; each is compiled once."""
    pytest.importorskip("libtpu", reason='the TPU compiler is missing: pip install -e ".[tpu]"')

    @functools.cache
    def compile_one(topology: str, program: str, strategy: str) -> dict:
        config, devices = make_config(strategy), tpu.tpu_devices(topology)
        lowered = tpu.PROGRAMS[program][0](config, SPEC, make_strategy(config.parallel, devices))
        return tpu.describe(lowered.compile(), devices=len(devices))

    return compile_one


def size(tree) -> int:
    """Bytes of a tree of arrays."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_of(found: dict, kind: str) -> int:
    return sum(item["bytes"] for item in found["collectives"] if item["kind"] == kind)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_training_sums_gradients_and_reuses_the_memory_of_the_state(topology, strategy, compiled):
    found = compiled(topology, "training step", strategy)
    shapes = state_shapes(make_config(strategy), SPEC)
    summed = bytes_of(found, "all-reduce") + bytes_of(found, "reduce-scatter")
    # Besides the gradients only a handful of scalars: losses, metrics, counts.
    assert size(shapes.params) <= summed < size(shapes.params) + 2000
    assert found["aliased_arguments"] == len(jax.tree.leaves(shapes))
    assert found["flops"] > 0 and found["bytes"]["code"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_fsdp_gathers_parameters_and_scatters_gradients(topology, compiled):
    shapes = state_shapes(make_config("fsdp"), SPEC)
    split = size([leaf for leaf in jax.tree.leaves(shapes.params) if leaf.size >= 1024])
    found, whole = (compiled(topology, "training step", name) for name in ("fsdp", "jit"))
    gathered = [
        item for item in found["collectives"] if item["origin"].endswith("sharding_constraint")
    ]
    assert {item["kind"] for item in gathered} == {"all-gather"}
    assert sum(item["bytes"] for item in gathered) == split
    # For arrays as small as these XLA sums whole on eight chips and takes its part after that.
    assert bytes_of(found, "reduce-scatter") > 0 or topology == "v5p:2x2x2"
    # Parameters, two moments: a device keeps its part of each.
    kept = whole["bytes"]["arguments"] - found["bytes"]["arguments"]
    devices = {"v5e:2x2": 4, "v5p:2x2x2": 8}[topology]
    assert kept > 0.9 * 3 * split * (1 - 1 / devices)


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_pmap_only_sums(topology, compiled):
    found = compiled(topology, "training step", "pmap")
    assert {item["kind"] for item in found["collectives"]} == {"all-reduce"}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["jit", "fsdp"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_rows_of_a_training_batch_stay_on_their_device(topology, strategy, compiled):
    found = compiled(topology, "training step", strategy)
    moved = [
        item
        for item in found["collectives"]
        if item["kind"] in ("all-gather", "all-to-all")
        and not item["origin"].endswith("sharding_constraint")
    ]
    assert not moved, moved


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["jit", "fsdp"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_evaluation_exchanges_its_records_only(topology, strategy, compiled):
    found = compiled(topology, "evaluation step", strategy)
    # Four bytes for each row and modality, for each of a few records; the smaller input has 4096.
    for item in found["collectives"]:
        if not item["origin"].endswith("sharding_constraint"):
            assert item["bytes"] <= 4 * 4 * ROWS, item
    assert found["aliased_arguments"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["DCT", "FFT"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_frequency_ratio_exchanges_nothing(topology, transform, compiled):
    found = compiled(topology, f"frequency ratio, {transform}", "jit")
    assert found["collectives"] == []
    assert found["flops"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_frequency_ratio_needs_little_memory_beside_its_input(topology, compiled):
    # Blocks of 8 on an axis that is padded to 128 take many times the input.
    found = compiled(topology, "frequency ratio, DCT", "jit")["bytes"]
    assert found["temporaries"] < 2 * found["arguments"]


def test_collectives_are_read_from_a_program(tpu):
    # Forms that the compiler writes, shortened: a chain of two pieces, a reduce-scatter as a
    # computation, a tuple, a start with its operand and result, and its done.
    text = """HloModule step, alias={ {0}: (0, {}, may-alias), {1}: (3, {}, must-alias)}
%all-reduce-scatter.2 (input_0: f32[128,64]) -> f32[32,64] {
  %all-reduce.1 = f32[128,64]{1,0:T(8,128)} all-reduce(%input_0), channel_id=1, to_apply=%add
}
%fused.1 (param: bf16[16,64]) -> bf16[64,64] {
  %all-gather.2 = bf16[64,64]{1,0:T(8,128)} all-gather(%a), channel_id=4, {chain_id="0"}
}
%fused.2 (param: bf16[16,64]) -> bf16[64,64] {
  %all-gather.3 = bf16[64,64]{1,0:T(8,128)} all-gather(%b), channel_id=4, {chain_id="0"}
}
ENTRY %main {
  %all-reduce.4 = (f32[2]{0:T(128)S(1)}, f32[]{:T(128)}, pred[3]{0}) all-reduce(%c), op_name="sum"
  %all-gather-start.5 = (f32[4,2]{1,0}, f32[16,2]{1,0}) all-gather-start(%f), channel_id=6
  %all-gather-done.5 = f32[16,2]{1,0} all-gather-done(%all-gather-start.5)
  %reduce-scatter.6 = f32[4,8]{1,0} reduce-scatter(%g), channel_id=7
}
"""
    found = tpu.collectives(text, devices=4)
    assert [(item.kind, item.bytes) for item in found] == [
        ("reduce-scatter", 128 * 64 * 4),
        ("all-gather", 64 * 64 * 2),
        ("all-reduce", 2 * 4 + 4 + 3),
        ("all-gather", 16 * 2 * 4),
        ("reduce-scatter", 4 * 8 * 4 * 4),
    ]
    assert found[2].origin == "sum" and found[2].shapes == ("f32[2]", "f32[]", "pred[3]")
    assert tpu.aliased_arguments(text) == 2


def test_page_is_generated_from_its_result_file(tpu):
    assert tpu.page(read_json(tpu.RESULT)) == tpu.PAGE.read_text()


@pytest.mark.slow
def test_an_unknown_topology_is_refused(tpu, compiled):
    with pytest.raises(FusionError, match="no TPU topology 'v5e:99x99'"):
        tpu.tpu_devices("v5e:99x99")
