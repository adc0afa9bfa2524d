"""One experiment, or with -m a sweep of them: check the names, compose the config, do the job.

python run.py method=lukv budget=0.2
python run.py --help
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from evals.harness import commandline


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    commandline.do(cfg)


if __name__ == "__main__":
    planned = commandline.plan(sys.argv[1:])
    main()
    sys.exit(commandline.summary(planned))
