"""On PYTHONPATH: a training step takes 20 ms longer and no more of the processor, so that a strike finds it training.

Every step asks for its learning rate, and that for its warm-up.
"""

import time

from sae_sweeps.schedules import _LearningRate

warm = _LearningRate.warm


def slow(*arguments):
    time.sleep(0.02)
    return warm(*arguments)


_LearningRate.warm = slow
