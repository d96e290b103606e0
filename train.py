"""Train a model.

python train.py --config=configs/av_digits.py --workdir=runs/av_digits

Any field of the config is a flag (--config.num_steps=500,
--config.model.encoders.audio.features=32). The same command goes on where an interrupted run
stopped.
"""

from absl import flags
from ml_collections import config_flags

from fusion_jax import cli
from fusion_jax.training import hosts
from fusion_jax.training.loop import train

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="config file, with :variant if it has any"
)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; made if missing")
PROFILE = flags.DEFINE_bool("profile", False, "write a trace and say what takes time")
flags.mark_flag_as_required("config")
flags.register_validator("workdir", bool, "give the folder of the run")


def main() -> None:
    """Train as the flags say."""
    config = CONFIG.value
    cli.use_compilation_cache(config.compilation_cache)
    train(config, WORKDIR.value, profile=PROFILE.value)
    if hosts.is_lead():
        print(f"trained: {WORKDIR.value}; next: python eval.py --workdir={WORKDIR.value}")


if __name__ == "__main__":
    cli.run(main)
