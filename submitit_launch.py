"""Any main on a SLURM cluster: its name, the launcher's flags (--help lists them), and its own.

python submitit_launch.py main_finetune --nodes 1 --ngpus 8 --job_dir /shared/runs/%j \
    @recipes/vit_base_finetune.args --finetune ... --data_path ...
"""

import importlib
import sys
from pathlib import Path

from util.cluster.slurm import get_args_parser, launch

MAINS = sorted(path.stem for path in Path(__file__).parent.glob("main_*.py"))

if __name__ == "__main__":
    parser = get_args_parser()
    if sys.argv[1:2] == ["--help"]:
        parser.parse_args(["--help"])
    if sys.argv[1:2] == [] or sys.argv[1] not in MAINS:
        parser.error(f"the first word is a main, one of {', '.join(MAINS)}")
    launch(importlib.import_module(sys.argv[1]), sys.argv[2:])
