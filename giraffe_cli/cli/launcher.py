"""Commands that start their own processes, whatever a launcher or a batch system says."""

from __future__ import annotations

from giraffe_cli.progress import Reporter


def start_alone(reporter: Reporter) -> None:
    """Forget what the environment says of other processes, aloud: Kubeflow sets it in every pod,
    and this one would wait for them, or leave the results to the first."""
    from giraffe_cli.evals.parts import leave_launcher

    names = leave_launcher()
    if names:
        reporter.warn(
            f"{', '.join(names)} of the environment left out: this command starts its own processes"
        )


def start_alone_unless_launched(reporter: Reporter) -> None:
    """As `start_alone`, but for a process that a launcher gave a part."""
    from giraffe_cli.evals.parts import launched_part

    if launched_part().processes == 1:
        start_alone(reporter)
