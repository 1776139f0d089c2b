"""The entry point: options in, one exit code out, and no traceback unless asked for."""

import json
import os
import sys
import warnings
from pathlib import Path

from ._arguments import build_parser
from ._errors import InputError, one_line

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        None: those of the process.

    Returns
    -------
    int
        Exit code: 0 done, 1 an unexpected failure, 2 bad input or usage, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        options = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said why
        return stop.code or DONE
    try:
        from ._threads import limited

        with limited(options.threads):
            (_audit if options.command == "audit" else _explain)(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("sklearn-dualif: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has had enough; leave nothing for the interpreter to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        return _failed(error, options.traceback)
    return DONE


def _failed(error, with_traceback):
    """Say what went wrong in one line; return the exit code."""
    from ..exceptions import (
        MemoryLimitError,
        ReportError,
        UnsupportedModelError,
        UnsupportedOptionError,
    )

    if with_traceback:
        import traceback

        traceback.print_exception(error)
    known = (
        InputError,
        MemoryLimitError,
        ReportError,
        UnsupportedModelError,
        UnsupportedOptionError,
    )
    if isinstance(error, known):
        says, code = str(error), BAD_INPUT
    elif isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        says, code = f"{error.strerror}{place}. Nothing was written.", BAD_INPUT
    elif isinstance(error, MemoryError):
        says, code = "not enough memory. Pass fewer rows or columns (--drop).", BAD_INPUT
    elif isinstance(error, ModuleNotFoundError):
        says = f'{error}. Install what is missing by pip install "sklearn-dualif[tables]".'
        code = BAD_INPUT
    else:
        says = f"unexpected: {type(error).__name__}: {error} (--traceback shows where)"
        code = FAILED
    print(f"sklearn-dualif: error: {one_line(says)}", file=sys.stderr)
    return code


def _audit(options):
    from ._audit import STEPS, audit
    from ._dataset import read_dataset
    from ._files import file_names, write_files
    from ._folder import OutputFolder
    from ._progress import Progress
    from ._summary import as_json, summary_lines
    from ._terminal import say

    data = Path(options.data)
    extension = ".parquet" if data.suffix.lower() in (".parquet", ".pq") else ".csv"
    names = file_names(options, extension)
    target = Path(options.out if options.out is not None else f"{data.stem}-audit")
    progress = Progress(STEPS + (options.sensitive is not None), options.quiet)
    folder = OutputFolder(target, list(names.values()), options.overwrite)
    with progress.step(f"reading {data.name}"):
        dataset = read_dataset(options)
    with folder:
        found = audit(dataset, options, progress)
        with progress.step("writing the report"), warnings.catch_warnings():
            # Letters that a font lacks are boxes in pictures, which is no news for the terminal.
            warnings.simplefilter("ignore")
            n_changed = write_files(found, folder.staged, names, options.rows, options.random_state)
        folder.publish()
    paths = {kind: target / name for kind, name in names.items()}
    if options.json:
        print(json.dumps(as_json(found, paths, progress.seconds, n_changed), ensure_ascii=False))
    elif not options.quiet:
        say(summary_lines(found, paths, progress.seconds, n_changed))


def _explain(options):
    from ._dataset import read_dataset
    from ._explain import STEPS, explain, explanation_json, explanation_lines
    from ._progress import Progress
    from ._summary import plain_json
    from ._terminal import say

    progress = Progress(STEPS + 1, options.quiet)
    with progress.step(f"reading {Path(options.data).name}"):
        dataset = read_dataset(options)
    found = explain(dataset, options, progress)
    if options.json:
        print(json.dumps(plain_json(explanation_json(found)), ensure_ascii=False))
    else:
        say(explanation_lines(found, dataset))
