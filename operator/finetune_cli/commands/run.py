"""`finetune run`."""

import typer

from ..display import make_display
from ..exit_status import of_status
from ..job_file import read_job_file
from .options import DEFAULT_WORK_DIR, Endpoint, JobPath, WatchMode, WorkDir


def run(
    job: JobPath,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
    watch: WatchMode = None,
) -> None:
    """Run a job on this machine. Workers are local processes.

    Objects are stored in an embedded S3 server, or in your own with --endpoint.

    Ctrl-C saves a checkpoint and stops; the same command resumes. A second Ctrl-C stops without saving.

    Exit status: 0 succeeded, 1 failed, 3 suspended, 65 invalid job or data, 66 file or model missing, 69 storage
    unreachable, 77 access denied, 78 bad configuration, 130 stopped without saving.
    """
    from ..local.runner import run_job

    file = read_job_file(job)
    file.check(local=True, for_run=True)
    with make_display(watch) as display:
        finished = run_job(file, work_dir=work_dir, endpoint=endpoint, display=display)
        if finished.report is not None:
            display.event(f"report: {finished.report}")
    raise typer.Exit(of_status(finished.job.status))
