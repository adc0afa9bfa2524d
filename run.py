"""One experiment, or with -m a sweep of them: check the names, compose the config, do the job.

python run.py method=lukv budget=0.2
python run.py --help
"""

from __future__ import annotations

import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from evals.run import cli as commandline
from evals.run import settings as config
from evals.run import slurm


@hydra.main(version_base="1.3", config_path=str(config.CONF), config_name="config")
def main(cfg: DictConfig) -> None:
    commandline.do(cfg)


def run() -> int:
    """What the command line asks for; the exit code."""
    sys.argv[1:] = commandline.spelled_out(sys.argv[1:])
    try:
        planned = commandline.plan(sys.argv[1:])
        if planned and all(p.here for p in planned):
            for p in planned:
                commandline.do(p.run)
        else:
            with slurm.waiting(planned):
                main()
        return commandline.summary(planned)
    except KeyboardInterrupt:
        commandline.stop(130, commandline.STOPPED)
    except (RuntimeError, OSError, HydraException) as e:
        commandline.stop(1, commandline.one_line(e))


if __name__ == "__main__":
    sys.exit(run())
