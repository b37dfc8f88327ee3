"""The `finetune` command."""

import sys

import typer

from .commands import (
    checkpoints,
    compare,
    demo,
    init,
    lm_eval,
    logs,
    objects,
    plan,
    promotion,
    run,
    runs,
    status,
    store,
    watch,
)
from .exit_status import USER_ERRORS, explain, of_error
from .terminal import echo

app = typer.Typer(
    name="finetune",
    help="Fine-tune language models as described by FineTuneJobs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run.run)
app.command()(demo.demo)
app.command()(init.init)
app.command()(objects.validate)
app.command()(plan.plan)
app.command()(objects.render)
app.command()(status.status)
app.command()(watch.watch)
app.command()(logs.logs)
app.command()(runs.runs)
app.command()(compare.compare)
app.command()(lm_eval.lm_eval)
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(store.app, name="store")
app.command()(promotion.promote)
app.command()(promotion.rollback)
app.command()(promotion.promoted)
app.command()(objects.crd)
app.command(name="version")(objects.show_version)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except USER_ERRORS as error:
        echo(f"finetune: {explain(error)}", file=sys.stderr)
        sys.exit(of_error(error))


if __name__ == "__main__":
    main()
