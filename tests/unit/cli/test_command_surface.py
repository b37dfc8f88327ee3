"""Commands and options that users and scripts rely on. A change here is a change of the public interface."""

import typer
from typer.main import get_command
from typer.testing import CliRunner

from finetune_cli.__main__ import app

CLUSTER = ["--context", "--kubeconfig", "--namespace"]
SURFACE = {
    "run": ["job", "--endpoint", "--output", "--work-dir", "-o"],
    "demo": ["--output", "--work-dir", "-o"],
    "init": ["--column", "--data", "--endpoint", "--model", "--output", "--work-dir", "-o"],
    "validate": ["files"],
    "plan": ["job", "--endpoint", "--output", "--work-dir", "-o"],
    "render": ["job"],
    "status": ["name", *CLUSTER, "--output", "--work-dir", "-n", "-o"],
    "watch": ["name", *CLUSTER, "--output", "--work-dir", "-n", "-o"],
    "logs": [
        *("name", "--attempt", "--context", "--follow", "--kubeconfig", "--namespace", "--rank", "--stage"),
        *("--work-dir", "-f", "-n"),
    ],
    "runs": ["--work-dir"],
    "compare": [
        *("runs", "--context", "--endpoint", "--html", "--kubeconfig", "--namespace", "--output", "--work-dir"),
        *("-n", "-o"),
    ],
    "lm-eval": [
        *("where", "folder", "--context", "--endpoint", "--kubeconfig", "--namespace", "--skip", "--work-dir", "-n")
    ],
    "checkpoints list": [
        *("where", "--context", "--endpoint", "--kubeconfig", "--namespace", "--output", "--work-dir", "-n", "-o")
    ],
    "checkpoints verify": [
        *("where", "--context", "--endpoint", "--kubeconfig", "--namespace", "--step", "--work-dir", "-n")
    ],
    "checkpoints prune": [
        *("where", "--context", "--dry-run", "--endpoint", "--keep-best", "--keep-every", "--keep-last"),
        *("--kubeconfig", "--namespace", "--work-dir", "--yes", "-n"),
    ],
    "checkpoints export": [
        *("where", "folder", "--context", "--endpoint", "--kubeconfig", "--namespace", "--step", "--work-dir", "-n")
    ],
    "store put": ["path", "uri", "--endpoint", "--work-dir"],
    "store get": ["uri", "path", "--endpoint", "--work-dir"],
    "store ls": ["uri", "--endpoint", "--recursive", "--work-dir", "-r"],
    "promote": [
        *("where", "--context", "--endpoint", "--force", "--kubeconfig", "--namespace", "--reason", "--work-dir", "-n")
    ],
    "rollback": ["where", "--context", "--endpoint", "--kubeconfig", "--namespace", "--reason", "--work-dir", "-n"],
    "promoted": [
        *("where", "--context", "--endpoint", "--kubeconfig", "--namespace", "--output", "--work-dir", "-n", "-o")
    ],
    "crd": [],
    "version": [],
}


def surface(command: object, name: str = "") -> dict[str, list[str]]:
    """Return the arguments (in order) and options (sorted) of each command."""
    if inner := getattr(command, "commands", None):
        return {key: value for child, each in inner.items() for key, value in surface(each, f"{name} {child}").items()}
    parameters = getattr(command, "params")  # noqa: B009
    arguments = [entry.name for entry in parameters if entry.param_type_name == "argument"]
    options = [option for entry in parameters if entry.param_type_name == "option" for option in entry.opts]
    return {name.strip(): [*arguments, *sorted(option for option in options if option not in ("--help", "-h"))]}


def test_commands_and_options_do_not_change() -> None:
    assert surface(get_command(app)) == SURFACE


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert result.exit_code == 0, result.output
    return result.output


def test_the_help_fits_80_columns_without_truncation() -> None:
    for name in ["", *SURFACE, "checkpoints", "store"]:
        text = invoke(*name.split(), "--help")
        assert all(len(line) <= 80 for line in text.splitlines()), text
        assert "..." not in text.replace("[ARGS]...", "").replace("{FILE}...", "").replace("{RUN}...", ""), text


def test_every_command_and_option_has_a_help_text() -> None:
    def check(command: object) -> None:
        assert getattr(command, "help"), command  # noqa: B009
        for parameter in getattr(command, "params"):  # noqa: B009
            assert getattr(parameter, "help", None), (command, parameter)
        for each in getattr(command, "commands", {}).values():
            check(each)

    for each in get_command(app).commands.values():  # type: ignore[attr-defined]
        check(each)
    assert isinstance(app, typer.Typer)


def test_crd_and_render_print_yaml_that_can_be_applied() -> None:
    assert invoke("crd").startswith("apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n")
