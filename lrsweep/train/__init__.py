"""One trial: the step, the schedule, the recorder."""

from lrsweep.train.ranks import Ranks
from lrsweep.train.schedule import learning_rate
from lrsweep.train.step import Engine, EngineKey
from lrsweep.train.trial import Progress, error_row, run_trial

__all__ = ["Engine", "EngineKey", "Progress", "Ranks", "error_row", "learning_rate", "run_trial"]
