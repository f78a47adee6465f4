"""Megatron-LM's ``pretrain_gpt.py`` with the monitor in it; it takes the same flags.

In a checkout of Megatron-LM, on a machine with a GPU, with the flags that ``pretrain_gpt.py`` would get:

torchrun --nproc-per-node=1 PATH/examples/megatron_pretrain.py FLAGS
"""

import os
import runpy
import sys

from lrsweep.integrations.megatron import watch

sys.path.insert(0, os.getcwd())
watch(action="stop")
runpy.run_path("pretrain_gpt.py", run_name="__main__")
