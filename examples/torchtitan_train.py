"""torchtitan's own training command with the monitor in it; it takes the same flags.

In a checkout of torchtitan, on a machine with a GPU:

torchrun --nproc-per-node=1 PATH/examples/torchtitan_train.py --module llama3 --config llama3_debugmodel
"""

from torchtitan.config import ConfigManager
from torchtitan.tools.logging import init_logger

from lrsweep.integrations.torchtitan import watch

init_logger()
trainer = ConfigManager().parse_args().build()
monitor = watch(trainer, action="stop")
try:
    trainer.train()
finally:
    trainer.close()
print(f"after step {trainer.step}: {monitor.verdict}")
