"""`mim3d demo`: the main job, whole, on a phantom cohort or on your own NIfTI files."""

from dataclasses import asdict

from mim3d.engine.arguments import parse
from mim3d.engine.demo import DemoConfig, run_demo
from mim3d.engine.outcome import Outcome

DESCRIPTION = """NIfTI -> corpus -> MAE and SimCLR pretraining -> fine-tuning -> convergence report.

Without --data it draws a synthetic cohort; about five minutes on two CPU cores. Interrupted, it
goes on where it stopped. At this size the honest answer is often "no significant speed-up".
"""


def main(words: list[str]) -> Outcome:
    """Run the demo; exit code 3 where files were left out."""
    config = parse(DemoConfig, words, "mim3d demo", DESCRIPTION)
    result = run_demo(config)
    conversion = asdict(result.conversion)
    return Outcome(
        {"report": str(result.study.report), "convert": conversion, "study": result.study.figures},
        lost=result.conversion.n_quarantined + len(result.study.failed),
    )
