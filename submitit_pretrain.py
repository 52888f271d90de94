r"""Pre-train on a SLURM cluster: the launcher's flags (--help lists them) and main_pretrain's.

python submitit_pretrain.py --nodes 4 --ngpus 8 --partition gpu --timeout 1440 \
    --job_dir /shared/runs/%j @recipes/mimae_vit_base_200ep.args --data_path /shared/imagenet
"""

import sys

import main_pretrain
from submitit_launch import launch

if __name__ == "__main__":
    launch(main_pretrain, sys.argv[1:])
