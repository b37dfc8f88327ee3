"""python -m finetune_trainer {prepare,train,evaluate} --config FILE: the supervisor of one pod."""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from finetune_api.constants import Stage
from finetune_api.exit_codes import ExitCode
from finetune_api.progress import TerminationMessage

from .errors import UsageError
from .supervisor.supervisor import Options, supervise, write_termination_message


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(ExitCode.USAGE, f"{self.prog}: {message}\n")


def main() -> int:
    """Parse the command line and supervise. An invalid environment is reported as a usage error."""
    parser = _Parser(prog="python -m finetune_trainer", description="Run one stage of a fine-tuning job.")
    parser.add_argument("stage", choices=[stage.value for stage in Stage], help="stage of the run")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="TrainerConfig as JSON")
    arguments = parser.parse_args()
    try:
        return supervise(Options(Stage(arguments.stage), arguments.config, os.environ))
    except UsageError as error:
        write_termination_message(
            TerminationMessage(stage=arguments.stage, exit_code=error.exit_code, error=str(error)), os.environ
        )
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
