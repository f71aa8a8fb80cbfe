"""What a rerun changes in a script: its seed, its remedies, its parameters, and the step at which it ends.

The script itself stays as it is. The worker sets environment variables; `gradmedic.init()` and `Run.watch()` read them.
What the trial reports beside its steps goes to a small file that the worker reads.

`GRADMEDIC_SEED` works for every run: a script that is started by hand with it is seeded as in a trial.
"""

from gradmedic.trial.instructions import REPORT_VARIABLE, SEED_VARIABLE, TRIAL_VARIABLE, TrialInstructions
from gradmedic.trial.report import describe_environment

__all__ = ["REPORT_VARIABLE", "SEED_VARIABLE", "TRIAL_VARIABLE", "TrialInstructions", "describe_environment"]
