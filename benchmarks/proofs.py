"""Run the benchmarks of the techniques, and check what their pages claim. Takes hours; resumes after an interruption.

A proof that has run on the current commit is not repeated. The output of each is shown while it runs. The last line is
a JSON object: `proofs: [{name, holds, figures}]`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

Figures = dict[str, Any]


@dataclass(frozen=True)
class Proof:
    """A benchmark whose last line is a JSON object."""

    page: str
    """Page in docs/techniques that has its figures."""
    command: tuple[str, ...]
    """Script in this folder, and its arguments. `{results}` is a file that keeps its partial results."""
    claim: str
    holds: Callable[[Figures], bool]
    """Whether the figures agree with the claim."""


def _pruning_heals(found: Figures) -> bool:
    sides = (found[f"{algorithm} 0.5"] for algorithm in ("Magnitude", "Wanda"))
    return all(side["healed"] >= side["before"] - 0.02 for side in sides)


def _forgets_less(found: Figures) -> bool:
    general = {name: side["general"] for name, side in found["settings"].items()}
    gradual = [loss for name, loss in general.items() if name.startswith("gradualUnfreezing")]
    return min(gradual) < general["all parameters"]


def _replay_forgets_less(found: Figures) -> bool:
    general = {name: side["general"] for name, side in found["settings"].items()}
    return all(loss < general["no replay"] for name, loss in general.items() if name.startswith("replay"))


PROOFS = {
    "learning rate": Proof(
        "learning-rate.md",
        ("learning_rate.py",),
        "the chosen rate is within 2 points of the best of six",
        lambda found: bool(found["accuracyGap"] <= 2.0),
    ),
    "pruning": Proof(
        "pruning.md",
        ("pruning.py",),
        "with half of the weights, the healed model is within 2 points of the model before",
        _pruning_heals,
    ),
    "gradual unfreezing": Proof(
        "gradual-unfreezing.md",
        ("forgetting.py", "--results", "{results}"),
        "gradual unfreezing forgets less than training all parameters",
        _forgets_less,
    ),
    "replay": Proof(
        "replay.md",
        ("replay.py", "--results", "{results}"),
        "with replay of general text, the loss on other general text rises less",
        _replay_forgets_less,
    ),
    "packing": Proof(
        "packing.md",
        ("packing.py",),
        "packs are trained twice as fast as padded rows, with an equal loss",
        lambda found: bool(
            found["packedRatio"] >= 2.0 and found["packedLossRatio"] <= 1.005 and found["packEfficiency"] >= 0.97
        ),
    ),
    "augmentation": Proof(
        "augmentation.md",
        ("augmentation.py", "--results", "{results}"),
        "copies neither help nor harm by more than two standard errors",
        lambda found: all(
            abs(side["difference"]) <= 2 * side["error"]
            for name, side in found.items()
            if isinstance(side, dict) and name not in {"plain", "linear baseline"}
        ),
    ),
    "SetFit": Proof(
        "few-shot.md",
        ("set_fit.py", "--results", "{results}"),
        "with the same computation, a full fine-tune is better than SetFit, and SetFit than the linear baseline",
        lambda found: bool(
            found["full"]["accuracy"] > found["setFit"]["accuracy"] > found["linear baseline"]["accuracy"]
        ),
    ),
}
"""Proof by name."""


def main() -> None:
    """Run the proofs that have no result yet, and print a table and a JSON object with all results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PROOFS, default=list(PROOFS))
    parser.add_argument("--folder", type=Path, default=ROOT / ".finetune/proofs", help="where results are kept")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    results = options.folder / f"{commit.strip()}.json"
    found: dict[str, Figures] = json.loads(results.read_text()) if results.exists() else {}
    for name in options.only:
        if name not in found:
            found[name] = run(PROOFS[name], options.folder / f"{name.replace(' ', '-')}.jsonl")
            results.write_text(json.dumps(found))
    proofs = [{"name": name, "holds": PROOFS[name].holds(found[name]), "figures": found[name]} for name in options.only]
    print(f"\n{'proof':<20} {'holds':<6} claim")
    for proof in proofs:
        print(f"{proof['name']:<20} {'yes' if proof['holds'] else 'no':<6} {PROOFS[str(proof['name'])].claim}")
    print(json.dumps({"proofs": proofs}))


def run(proof: Proof, results: Path) -> Figures:
    """Run a benchmark, and return the JSON object of its last line."""
    script, *arguments = (word.replace("{results}", str(results)) for word in proof.command)
    command = [sys.executable, str(Path(__file__).parent / script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line if line.strip() else last
    if process.returncode != 0:
        raise SystemExit(f"{script} ended with {process.returncode}; run `make proofs` again to continue")
    figures: Figures = json.loads(last)
    return figures


if __name__ == "__main__":
    main()
