"""Run a benchmark's jobs in processes of their own and print what they show."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from _measure import interleave, peak_growth
from threadpoolctl import threadpool_limits

MEGABYTE = 2**20


@dataclass
class Job:
    """One comparison: who takes part, against whom, and what is to be shown.

    Attributes
    ----------
    title : str
        What is computed.
    contenders : dict of str to callable
        Work to time, by name; each returns its result.
    baseline : str
        The contender whose seconds the others are divided by.
    repeats : dict of str to int
        Runs of the contenders that are not run as often as the rest.
    check : callable
        Results by name to agreement by name (see ``_measure.agreement``) and a dict of other
        figures, by what they say.
    claims : callable
        ``(seconds ratio by name, megabytes by name, agreement by name, figures)`` to a list of
        ``claim``.
    """

    title: str
    contenders: dict[str, Callable]
    baseline: str
    check: Callable
    claims: Callable
    repeats: dict[str, int] = field(default_factory=dict)


def claim(text, measured, target, met):
    """One target of the benchmark and whether it was met; None: there is no target."""
    met = None if met is None else bool(met)
    return {"text": text, "measured": measured, "target": target, "met": met}


def markdown(header, rows):
    """A Markdown table; `rows` are sequences of strings as long as `header`."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def child(build, only, repeats):
    """Seconds and agreement of one job, or the peak memory of one contender of it."""
    for work in build(small=True).contenders.values():
        work()
    job = build(small=False)
    if only is not None:
        return {"bytes": peak_growth(job.contenders[only])}
    counts = {name: min(repeats, job.repeats.get(name, repeats)) for name in job.contenders}
    seconds, results = interleave(job.contenders, counts)
    # Small factorizations: with threads they only wait for each other on a busy machine.
    with threadpool_limits(1):
        agreements, figures = job.check(results)
    return {"seconds": seconds, "agreements": agreements, "figures": figures}


def run_child(script, arguments, threads):
    """Run `script` on `arguments` in a new process and return what it found."""
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    if threads is not None:
        for library in ("OMP", "OPENBLAS", "MKL"):
            environment[f"{library}_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "found.json")
        command = [sys.executable, script, *arguments, "--child", str(found)]
        subprocess.run(command, check=True, env=environment)
        return json.loads(found.read_text())


def report(job, found, megabytes):
    """Print one job's tables; return its figures."""
    medians = {name: float(np.median(taken)) for name, taken in found["seconds"].items()}
    ratios = {name: taken / medians[job.baseline] for name, taken in medians.items()}
    agreements, figures = found["agreements"], found["figures"]
    claims = job.claims(ratios, megabytes, agreements, figures)

    header = ["", "seconds", f"× {job.baseline}", "peak MB"]
    rows = [
        [name, f"{taken:.3f}", f"{ratios[name]:.2f}", f"{megabytes[name]:.0f}"]
        for name, taken in medians.items()
    ]
    if agreements:
        columns = ("pearson", "slope", "slope back", "spearman", "rms error")
        header += columns
        for row in rows:
            of_row = agreements.get(row[0])
            row += [f"{of_row[column]:.5g}" if of_row else "" for column in columns]
    print(f"\n### {job.title}\n")
    print(markdown(header, rows))
    if figures:
        print("\n" + "\n".join(f"- {text}: {value:.1e}" for text, value in figures.items()))
    verdict = {True: "yes", False: "**no**", None: ""}
    rows = [
        [item["text"], item["measured"], item["target"], verdict[item["met"]]] for item in claims
    ]
    print("\n" + markdown(["", "measured", "target", "met"], rows))
    return {
        "title": job.title,
        "ratios": ratios,
        "megabytes": megabytes,
        "claims": claims,
        **found,
    }


def machine():
    """Versions and cores, for the record."""
    packages = ("scikit-learn", "numpy", "scipy", "torch", "dattri", "pyinfluence")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        **{package: version(package) for package in packages},
    }


def main(text, script, parts_of):
    """Run the parts named on the command line.

    Parameters
    ----------
    text : str
        The script's docstring.
    script : str
        Its file, which is run again for every measurement.
    parts_of : dict of str to list of callable
        Jobs of each part, as functions of `small`: whether it is the run that only warms up.
    """
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help="parts to run; all if none")
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    parser.add_argument("--threads", type=int, help="threads of the numerical libraries")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each contender")
    parser.add_argument("--position", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    parts = options.parts or list(parts_of)
    if unknown := set(parts) - set(parts_of):
        parser.error(f"unknown part {sorted(unknown)}; the parts are {', '.join(parts_of)}")
    if options.child is not None:
        found = child(parts_of[parts[0]][options.position], options.only, options.repeats)
        options.child.write_text(json.dumps(found))
        return

    sys.stdout.reconfigure(line_buffering=True)
    # As an exception, a request to stop ends the running child too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    record = {"machine": machine(), "parts": {}}
    print(", ".join(f"{key} {value}" for key, value in record["machine"].items()))
    for part in parts:
        record["parts"][part] = []
        for position, build in enumerate(parts_of[part]):
            arguments = [part, "--position", str(position), "--repeats", str(options.repeats)]
            job = build(small=False)
            found = run_child(script, arguments, options.threads)
            megabytes = {
                name: run_child(script, [*arguments, "--only", name], options.threads)["bytes"]
                / MEGABYTE
                for name in job.contenders
            }
            record["parts"][part].append(report(job, found, megabytes))
    if options.json is not None:
        options.json.write_text(json.dumps(record, indent=2, ensure_ascii=False))
