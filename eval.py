"""Evaluate a run under noise and missing modalities.

python eval.py --workdir=runs/av_digits

Writes report.json and report.html into the folder of the run.
"""

from absl import flags

from fusion_jax import cli
from fusion_jax.evaluate import evaluate
from fusion_jax.runs import load_config

WORKDIR = flags.DEFINE_string("workdir", None, "folder of a trained run")
SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "split to evaluate on")
ALLOW = flags.DEFINE_list("allow", [], "packages besides fusion_jax whose classes the run may name")
flags.register_validator("workdir", bool, "give the folder of a trained run")


def main() -> None:
    """Evaluate as the flags say."""
    config, _, _ = load_config(WORKDIR.value, allow=ALLOW.value)
    cli.use_compilation_cache(config.compilation_cache)
    report = evaluate(WORKDIR.value, split=SPLIT.value, allow=ALLOW.value)
    clean = [row for row in report["cells"] if not row["modality"] and not row["missing"]]
    accuracy = sum(row["accuracy"] for row in clean) / len(clean)
    print(
        f"clean accuracy {accuracy:.4f} on {report['data']['num_examples']} {SPLIT.value} examples"
    )
    print(f"report: {WORKDIR.value}/report.html")


if __name__ == "__main__":
    cli.run(main)
