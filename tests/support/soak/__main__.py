"""`make soak`: kill everything that writes checkpoints, hundreds of times, and see what is lost.

    make soak ARGS='--kills 200 --seed 1'

Two ranks train tiny models with dropout and without, full and with LoRA, ZeRO 1 to 3, with checkpoint.maxLostWork of
five seconds. One rank, all ranks, an uploader or the storage server are killed with SIGKILL at any moment and at every
kind of request: before storage is told, or once it has done it, of which nobody hears. Half of the attempts find no
copies on their host. Storage's clock runs 1,800 times as fast, so that unneeded blobs are removed within seconds. Every
run ends whole in the end, and its log is compared with that of a run that nobody interrupted.

kills             Carried out.
corruptResumes    Attempts that failed by themselves, checkpoints that were passed over, or damaged in the end: 0.
maxLostIntervals  Work that a kill of a rank has cost, by checkpoint.maxLostWork: 1 at most. Attempts in which an
                  uploader or storage had been killed before are in maxLostIntervalsAfterOtherKills.
lossMismatches    Logged losses that differ from those of the uninterrupted run in any bit: 0.

A campaign that is broken off goes on with the next call. The last line is one JSON object.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from soak.campaign import Campaign, site

MAX_LOST_SECONDS = 5.0


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(".finetune/soak"), help="where a campaign is noted")
    return parser.parse_args()


def main() -> None:
    """Play what is left, tell each run, sum up; exit 1 where something was lost."""
    options = _parsed()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / f"seed-{options.seed}-kills-{options.kills}.jsonl"
    campaign = Campaign(seed=options.seed, kills=options.kills, path=path)
    if campaign.outcomes:
        print(f"goes on after {len(campaign.outcomes)} runs, noted in {path}")
    with tempfile.TemporaryDirectory() as folder, site(Path(folder), max_lost_seconds=MAX_LOST_SECONDS) as place:
        begun = time.monotonic()
        for outcome in campaign.play(place):
            print(
                f"{time.monotonic() - begun:6.0f} s  run {outcome.number}: {outcome.attempts} attempts, "
                f"{len(outcome.kills)} kills ({campaign.kills} of {options.kills}), {len(outcome.corrupt)} corrupt, "
                f"{outcome.mismatches} mismatches",
                flush=True,
            )
            for told in outcome.corrupt:
                print(f"    {told}", flush=True)
    summary = campaign.summary(MAX_LOST_SECONDS)
    print(f"\n{campaign.table()}\n\n{json.dumps(summary)}")
    path.unlink()  # the next call is another campaign
    is_whole = summary["corruptResumes"] == summary["lossMismatches"] == 0 and summary["maxLostIntervals"] <= 1
    sys.exit(0 if is_whole and summary["kills"] >= options.kills else 1)


if __name__ == "__main__":
    main()
