"""Folders from which a fork server imports this project if it is not installed."""

import subprocess
import sys
import sysconfig

from finetune_trainer.supervisor.forkclient import _source_roots


def test_the_fork_server_can_be_imported_from_the_source_roots_alone() -> None:
    paths = [*_source_roots(), sysconfig.get_path("purelib")]
    # -S: without the .pth file of an editable installation.
    code = f"import sys; sys.path[:0] = {paths!r}; import finetune_trainer.supervisor.forkserver, finetune_api"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_modules_of_a_package_are_not_top_level_modules() -> None:
    code = f"import sys; sys.path[:0] = {_source_roots()!r}; import forkserver"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
    assert "No module named 'forkserver'" in done.stderr
