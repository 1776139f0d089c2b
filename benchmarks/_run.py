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
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

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
        `Found` to a list of ``claim``.
    apart : bool
        For contenders that take long, or would upset each other: every run is in a process of its
        own, which gives seconds and bytes together. One that fails is left out and named. Results
        are arrays, or dicts of arrays by name, and reach `check` as dicts (an array alone as
        "effects"); a result's own "seconds" and "bytes", measured elsewhere, are taken instead.
    limits : dict of str to float
        Seconds after which a contender is stopped; only apart.
    skipped : dict of str to str
        Contenders that can't take part here, and why.
    probes : dict of str to callable
        Work that gives figures by what they say, each in a process of its own.
    """

    title: str
    contenders: dict[str, Callable]
    baseline: str
    check: Callable
    claims: Callable
    repeats: dict[str, int] = field(default_factory=dict)
    apart: bool = False
    limits: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    probes: dict[str, Callable] = field(default_factory=dict)


class Found(NamedTuple):
    """What was measured, by contender: medians of seconds, these over the baseline's, and so on."""

    seconds: dict
    ratios: dict
    megabytes: dict
    agreements: dict
    figures: dict


def claim(text, measured, target, met):
    """One target of the benchmark and whether it was met; None: there is no target."""
    met = None if met is None else bool(met)
    return {"text": text, "measured": measured, "target": target, "met": met}


def markdown(header, rows):
    """A Markdown table; `rows` are sequences of strings as long as `header`."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def child(build, options):
    """Do what one process is there for, and return what it found."""
    if options.check:
        return check_apart(build(small=False), options.results)
    if options.probe is not None:
        build(small=True).probes[options.probe]()
        return build(small=False).probes[options.probe]()
    warming = build(small=True).contenders
    for name, work in warming.items():
        if options.contender in (None, name):
            work()
    job = build(small=False)
    if job.apart:
        return run_apart(job, options.contender, options.results)
    if options.contender is not None:
        return {"bytes": peak_growth(job.contenders[options.contender])}
    most = options.repeats
    counts = {name: min(most, job.repeats.get(name, most)) for name in job.contenders}
    seconds, results = interleave(job.contenders, counts)
    # Small factorizations: with threads they only wait for each other on a busy machine.
    with threadpool_limits(1):
        agreements, figures = job.check(results)
    return {"seconds": seconds, "agreements": agreements, "figures": figures}


def run_apart(job, name, folder):
    """Measure one contender and keep its result in `folder`."""
    work, kept = job.contenders[name], {}

    def timed():
        start = time.perf_counter()
        kept["result"] = work()
        kept["seconds"] = time.perf_counter() - start

    if name in job.limits:
        # The default action of the signal ends work that never comes back to Python, too.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, job.limits[name])
    grown = peak_growth(timed)
    signal.setitimer(signal.ITIMER_REAL, 0)
    result = kept["result"]
    result = dict(result) if isinstance(result, dict) else {"effects": result}
    measured = {
        "seconds": float(result.pop("seconds", kept["seconds"])),
        "bytes": int(result.pop("bytes", grown)),
    }
    np.savez(_result_file(job, name, folder), **result)
    return measured


def check_apart(job, folder):
    """Return agreements and figures of the results that are in `folder`."""
    results = {}
    for name in job.contenders:
        path = _result_file(job, name, folder)
        if path.exists():
            with np.load(path) as arrays:
                results[name] = dict(arrays)
    agreements, figures = job.check(results)
    return {"agreements": agreements, "figures": figures}


def _result_file(job, name, folder):
    return Path(folder, f"{list(job.contenders).index(name)}.npz")


def run_child(script, arguments, threads, log=None):
    """Run `script` on `arguments` in a new process and return what it found."""
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    if threads is not None:
        for library in ("OMP", "OPENBLAS", "MKL"):
            environment[f"{library}_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "found.json")
        command = [sys.executable, script, *arguments, "--child", str(found)]
        subprocess.run(command, check=True, env=environment, stdout=log, stderr=log)
        return json.loads(found.read_text())


def measure_together(job, script, arguments, options):
    """Return findings and megabytes of contenders that take turns in one process."""
    found = run_child(script, arguments, options.threads)
    megabytes = {
        name: run_child(script, [*arguments, "--contender", name], options.threads)["bytes"]
        / MEGABYTE
        for name in job.contenders
    }
    return found, megabytes


def measure_apart(job, script, arguments, options):
    """Return findings and megabytes of contenders that each have processes of their own."""
    seconds, megabytes, figures = {}, {}, {}

    def asked_for(names):
        only = options.only
        return [name for name in names if not only or any(text in name for text in only)]

    with tempfile.TemporaryDirectory() as folder:
        arguments = [*arguments, "--results", folder]

        def attempt(kind, name):
            with tempfile.TemporaryFile("w+") as log:
                try:
                    return run_child(script, [*arguments, kind, name], options.threads, log)
                except subprocess.CalledProcessError as error:
                    if error.returncode == -signal.SIGALRM:
                        job.skipped[name] = f"stopped after {job.limits[name]:.0f} s"
                        return None
                    log.seek(0)
                    lines = [line.strip() for line in log if line.strip()]
                    last = lines[-1] if lines else f"exit code {error.returncode}"
                    job.skipped[name] = f"failed: {last}"
                    return None

        for turn in range(options.repeats):
            for name in asked_for(job.contenders):
                if turn >= job.repeats.get(name, options.repeats) or name in job.skipped:
                    continue
                if (measured := attempt("--contender", name)) is None:
                    continue
                print(f"{name}: {measured['seconds']:.2f} s", file=sys.stderr)
                seconds.setdefault(name, []).append(measured["seconds"])
                megabytes[name] = max(megabytes.get(name, 0.0), measured["bytes"] / MEGABYTE)
        for name in asked_for(job.probes):
            figures |= attempt("--probe", name) or {}
        found = run_child(script, [*arguments, "--check"], options.threads)
    found["figures"] = {**figures, **found["figures"]}
    return {"seconds": seconds, **found}, megabytes


def report(job, found, megabytes):
    """Print one job's tables; return its figures."""
    medians = {name: float(np.median(taken)) for name, taken in found["seconds"].items()}
    baseline = medians.get(job.baseline)
    ratios = {} if baseline is None else {name: t / baseline for name, t in medians.items()}
    agreements, figures = found["agreements"], found["figures"]
    claims = job.claims(Found(medians, ratios, megabytes, agreements, figures))

    header = ["", "seconds", f"× {job.baseline}", "peak MB"]
    rows = [
        [
            name,
            f"{taken:.3f}",
            f"{ratios[name]:.2f}" if ratios else "",
            f"{megabytes[name]:.0f}",
        ]
        for name, taken in medians.items()
    ]
    columns = list(dict.fromkeys(key for one in agreements.values() for key in one))
    header += columns
    for row in rows:
        of_row = agreements.get(row[0], {})
        row += [f"{of_row[key]:.5g}" if key in of_row else "" for key in columns]
    print(f"\n### {job.title}\n")
    print(markdown(header, rows))
    lines = [f"{text}: {_shown(value)}" for text, value in figures.items()]
    lines += [f"{name}: {why}" for name, why in job.skipped.items()]
    if lines:
        print("\n" + "\n".join(f"- {line}" for line in lines))
    verdict = {True: "yes", False: "**no**", None: ""}
    rows = [
        [item["text"], item["measured"], item["target"], verdict[item["met"]]] for item in claims
    ]
    if rows:
        print("\n" + markdown(["", "measured", "target", "met"], rows))
    return {
        "title": job.title,
        "ratios": ratios,
        "megabytes": megabytes,
        "claims": claims,
        "skipped": job.skipped,
        **found,
    }


def _shown(value):
    if isinstance(value, str):
        return value
    return f"{value:.3g}" if 1e-2 <= abs(value) < 1e4 else f"{value:.1e}"


def machine():
    """Versions and cores, for the record."""
    packages = (
        "scikit-learn",
        "numpy",
        "scipy",
        "torch",
        "dattri",
        "pyinfluence",
        "kronfluence",
        "captum",
        "traker",
    )
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        **versions,
    }


def main(text, script, parts_of, *, repeats=7, plot=None):
    """Run the parts named on the command line.

    Parameters
    ----------
    text : str
        The script's docstring.
    script : str
        Its file, which is run again for every measurement.
    parts_of : dict of str to list of callable
        Jobs of each part, as functions of `small`: whether it is the run that only warms up.
    repeats : int
        Timed runs of each contender, unless the command line says otherwise.
    plot : callable or None
        ``(record, file)`` draws what ``--plot`` asks for.
    """
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help="parts to run; all if none")
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    parser.add_argument("--threads", type=int, help="threads of the numerical libraries")
    parser.add_argument("--repeats", type=int, default=repeats, help="timed runs of each contender")
    parser.add_argument(
        "--only",
        action="append",
        metavar="TEXT",
        help="run the contenders and probes whose names contain this; may be given again",
    )
    if plot is not None:
        parser.add_argument("--plot", type=Path, help="also draw the curves in this PNG")
    for hidden in ("--contender", "--probe", "--results"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--position", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    parts = options.parts or list(parts_of)
    if unknown := set(parts) - set(parts_of):
        parser.error(f"unknown part {sorted(unknown)}; the parts are {', '.join(parts_of)}")
    if options.child is not None:
        found = child(parts_of[parts[0]][options.position], options)
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
            if options.only and not job.apart:
                parser.error(f"part {part} compares in one process and can't run --only some.")
            measure = measure_apart if job.apart else measure_together
            found, megabytes = measure(job, script, arguments, options)
            record["parts"][part].append(report(job, found, megabytes))
    if options.json is not None:
        options.json.write_text(json.dumps(record, indent=2, ensure_ascii=False))
    if plot is not None and options.plot is not None:
        plot(record, options.plot)
