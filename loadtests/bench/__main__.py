"""Penstock beside its peers and the limit, interleaved: `python -m loadtests.bench [report] [--cases ...]`.

Each case starts its own peers, on free ports of loopback, and stops them. What is measured replaces what was kept of
the same case and number of connections in docs/benchmarks/serving/, and the page is written anew; with `--peers` or
`--rounds` below 5 or `--generator` nothing is kept, unless `--keep` is given. `report` only writes the
page; `plan` only says who would be measured, and for how long.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from loadtests.bench.cases import CASES
from loadtests.bench.lineup import PEERS, contestants
from loadtests.bench.load import GENERATORS
from loadtests.bench.peers import ROOT, NotStarted
from loadtests.bench.published import make_model
from loadtests.bench.report import tables, write_report
from loadtests.bench.results import Trial, load, save
from loadtests.bench.rounds import run_case, say
from loadtests.bench.schedule import Plan, expected_s, numbers_of, who

__all__ = ["main"]

_FEWEST_ROUNDS = 5
"""Below these, medians are not worth keeping."""
_GENERATOR_HELP = """\
auto: wrk and h2load for quick answers, else the benchmark's own clients; own: these always; locust: its users, who
check every answer's numbers and take far more of the cores."""


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    pages = options.output
    if options.action == "report":
        return _write_page(pages)
    plan = _plan(options, arguments)
    if options.action == "plan":
        return _print_plan(plan, options.cases)
    # both: a shell starts what is in the background without the first
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    keep = options.keep or (not options.peers and options.rounds >= _FEWEST_ROUNDS and options.generator == "auto")
    try:
        failed = _run(plan, options.cases, pages if keep else None)
    except KeyboardInterrupt:
        say("interrupted; everything is stopped")
        return 130
    return (_write_page(pages) if keep else 0) or failed


def _plan(options: argparse.Namespace, arguments: Sequence[str]) -> Plan:
    return Plan(
        command=shlex.join(["python", "-m", "loadtests.bench", *arguments]),
        connections=options.connections,
        peers=options.peers,
        num_rounds=options.rounds,
        seconds=options.seconds,
        warm_up_s=options.warm_up,
        limit_s=options.limit_s,
        load_before=os.getloadavg()[0],
        generator=options.generator,
    )


def _print_plan(plan: Plan, cases: Sequence[str]) -> int:
    for case in map(CASES.__getitem__, cases):
        lineup = contestants(case, plan.peers)
        print(f"{case.name}: about {expected_s(plan, case) / 60:.1f} min")
        for connections in numbers_of(plan, case):
            names = who(plan, lineup, connections)
            print(f"  c={connections}: {', '.join(each.key for each in lineup if each.name in names)}")
    print(f"about {sum(expected_s(plan, CASES[name]) for name in cases) / 60:.0f} min together")
    return 0


def _run(plan: Plan, cases: Sequence[str], pages: Path | None) -> int:
    """What one case meets does not keep the others from being measured."""
    status = 0
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        for case in cases:
            try:
                # a place for each model: servers that load all that they find there would hold the other cases' too
                directory = Path(name) / CASES[case].model
                directory.mkdir(exist_ok=True)
                make_model(directory, CASES[case].model)
                trials = run_case(plan, CASES[case], directory)
            except (NotStarted, OSError) as error:
                say(f"{case} failed: {error}")
                status = 1
                continue
            print("\n".join(tables({(trial.case, trial.connections): trial for trial in trials})), flush=True)
            _print_ratios(trials)
            if pages is not None:
                save(pages / "serving", trials)
    return status


def _print_ratios(trials: Sequence[Trial]) -> None:
    """Of the first of each to the others, for who steers by them."""
    for trial in trials:
        names = [peer.name for peer in PEERS.values() if peer.name in trial.samples]
        ratios = ((name, trial.ratio(names[0], name)) for name in names[1:])
        text = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios if ratio is not None)
        print(f"c={trial.connections}: {''.join(names[:1])} / {text}")


def _write_page(pages: Path) -> int:
    trials = load(pages / "serving")
    if not trials:
        say(f"nothing is kept in {pages / 'serving'}")
        return 1
    page = pages / "serving.md"
    page.write_text(write_report(trials, notes=pages / "serving" / "notes.md"))
    say(f"wrote {page}")
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", nargs="?", choices=["run", "report", "plan"], default="run")
    parser.add_argument("--cases", type=_names(CASES), default=list(CASES), help=f"Of {','.join(CASES)}; default: all.")
    parser.add_argument(
        "--peers", type=_names(PEERS), default=[], help=f"Of {','.join(PEERS)}; default: as `plan` prints."
    )
    parser.add_argument(
        "--connections",
        type=lambda text: [int(each) for each in text.split(",")],
        default=[],
        help="Such as 1,8,32; default: those of each case, and of each peer, as `plan` prints them.",
    )
    parser.add_argument("--rounds", type=int, default=_FEWEST_ROUNDS, help="Default: 5.")
    parser.add_argument("--seconds", type=int, default=1, help="Of each figure in each round; default: 1.")
    parser.add_argument(
        "--warm-up", type=int, default=2, help="Seconds for each peer of a case, thrice for a JVM; default: 2."
    )
    parser.add_argument("--generator", choices=GENERATORS, default="auto", help=_GENERATOR_HELP)
    parser.add_argument("--limit-s", type=float, default=900, help="No round begins that may end later; for each case.")
    parser.add_argument("--keep", action="store_true", help="Keep the samples whatever they are.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks", help="Where the page lies.")
    return parser.parse_args(arguments)


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """A parser of known names, parted by commas."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name}: expected some of {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
