"""Evaluate a run under noise and missing modalities.

python eval.py --workdir=runs/av_digits

Writes report.json and report.html into the folder of the run. With --thresholds the exit status
is 1 where a limit is not kept.
"""

import sys

from absl import flags

from fusion_jax import cli
from fusion_jax.cells import GRIDS
from fusion_jax.evaluate import CORRUPTIONS, describe_report, evaluate
from fusion_jax.runs import load_config
from fusion_jax.training import hosts

WORKDIR = flags.DEFINE_string("workdir", None, "folder of a trained run")
SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "split to evaluate on")
ALLOW = flags.DEFINE_list("allow", [], "packages besides fusion_jax whose classes the run may name")
KINDS = flags.DEFINE_enum(
    "corruptions", "config", list(CORRUPTIONS), "all: every corruption that fits the inputs"
)
SEVERITIES = flags.DEFINE_multi_float("severity", None, "in place of the configuration's; repeat")
GRID = flags.DEFINE_enum(
    "grid", "standard", list(GRIDS), "joint: every condition of a modality with every other one's"
)
COMPARE = flags.DEFINE_string("compare", None, "folder of another run, evaluated on this split")
THRESHOLDS = flags.DEFINE_string("thresholds", None, "TOML file of limits that the run must keep")
flags.register_validator("workdir", bool, "give the folder of a trained run")


def main() -> None:
    """Evaluate as the flags say."""
    config, _, _ = load_config(WORKDIR.value, allow=ALLOW.value)
    cli.use_compilation_cache(config.compilation_cache)
    report = evaluate(
        WORKDIR.value,
        split=SPLIT.value,
        allow=ALLOW.value,
        grid=GRID.value,
        corruptions=KINDS.value,
        severities=SEVERITIES.value,
        compare_with=COMPARE.value,
        thresholds=THRESHOLDS.value,
        pictures=True,
        silent=False,
    )
    if not hosts.is_lead():
        return
    print("\n".join(describe_report(report)), f"\nreport: {WORKDIR.value}/report.html", sep="")
    if not all(check["passed"] for check in report.get("thresholds", [])):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
