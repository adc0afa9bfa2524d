"""One experiment, or with -m a sweep of them: check the names, compose the config, do the job.

python run.py method=lukv budget=0.2
python run.py --help
"""

from __future__ import annotations

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from evals.run import cli, slurm
from evals.run.compose import join_lines
from evals.run.overrides import normalize_arguments
from evals.run.summary import summarize
from evals.run.sweep import Sweep
from lukv.conf import CONF


def run() -> int:
    """Do what the command line asks for; the exit code."""
    sys.argv[1:] = normalize_arguments(sys.argv[1:])
    try:
        sweep = cli.plan(sys.argv[1:])
        if sweep.in_process:
            for planned in sweep.planned:
                cli.do(planned.run, sweep)
        else:
            with slurm.wait_for_tasks(sweep):
                launch(sweep)
        return summarize(sweep)
    except KeyboardInterrupt:
        cli.stop(130, cli.STOPPED)
    except (RuntimeError, OSError, HydraException) as e:
        cli.stop(1, join_lines(e))


def launch(sweep: Sweep) -> None:
    """Let Hydra launch the runs: its launcher may send them elsewhere, and --help and its like are its own."""

    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints what a launcher raises, and ends the process

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def main(cfg: DictConfig) -> None:
        cli.do(cfg, sweep)

    main()


if __name__ == "__main__":
    sys.exit(run())
