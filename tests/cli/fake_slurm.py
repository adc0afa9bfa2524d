"""Slurm's commands as far as submitit uses them: tasks run at once, as processes here. Real Slurm: tests/slurm."""

from __future__ import annotations

from pathlib import Path

SBATCH = """
script=$(mktemp)  # a copy, as Slurm makes one: submitit moves its file once it is submitted
cat "${@: -1}" > "$script"
id=$((100 + $(ls STATE | wc -l)))
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 "${last:-0}"); do
  job=$id${last:+_$task}
  echo RUNNING > "STATE/$job"
  (
    export SLURM_JOB_ID=$id SLURM_LOCALID=0 SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0
    export SLURM_JOB_NODELIST=here
    if [ -n "$last" ]; then export SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$task; fi
    bash "$script"
    echo COMPLETED > "STATE/$job"
  ) > /dev/null 2>&1 &
done
echo "Submitted batch job $id"
"""

SRUN = """
fill() {
  f=${1//%A/$SLURM_ARRAY_JOB_ID}; f=${f//%a/$SLURM_ARRAY_TASK_ID}; f=${f//%j/$SLURM_JOB_ID}; f=${f//%t/0}
  mkdir -p "$(dirname "$f")"  # submitit makes it once sbatch is back; tasks that run at once are at times earlier
  echo "$f"
}
while [[ $1 == --* ]]; do
  case $1 in
    --output) exec > "$(fill "$2")"; shift 2;;
    --error) exec 2> "$(fill "$2")"; shift 2;;
    *) shift;;
  esac
done
exec "$@"
"""

SACCT = """
echo "JobID|State|NodeList"
for job in STATE/*; do echo "$(basename "$job")|$(cat "$job")|here"; done
"""

SQUEUE = """
grep -l RUNNING STATE/* || true
"""


def install(folder: Path) -> Path:
    """The folder, with the commands in it: put it in front of PATH."""
    state = folder / "state"
    state.mkdir(parents=True)
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "squeue": SQUEUE}.items():
        (folder / name).write_text("#!/bin/bash\n" + text.replace("STATE", str(state)))
        (folder / name).chmod(0o755)
    return folder
