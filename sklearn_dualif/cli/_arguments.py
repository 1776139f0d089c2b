"""The options of the command line."""

import argparse

DESCRIPTION = """\
Which rows of a table are wrong, and which made a model say what it says?

  sklearn-dualif audit data.csv --target y
  sklearn-dualif explain data.csv --target y --row 17
"""

EXIT_CODES = """\
exit codes: 0 done; 1 an unexpected failure; 2 bad input or usage, said in one line;
130 interrupted. Whatever is not 0 leaves no file behind."""

AUDIT = """\
Fit a model, check it, and judge every row of a table by what the model without it says.

Writes into a folder: issues.csv (all rows in their order, with ranks and reasons), clean.csv
(the table without the rows that are issues; clean.parquet of a Parquet file), groups.csv with
--groups, and report.html."""

AUDIT_EXAMPLES = """\
examples:
  sklearn-dualif audit people.csv --target income
  sklearn-dualif audit people.csv --target income --sensitive sex --favorable high
  sklearn-dualif audit visits.csv --target cost --index visit --groups site --out visits
  sklearn-dualif audit people.parquet --target income --model skops:mine.skops --trust
  sklearn-dualif audit people.csv --target income --json --quiet > summary.json

A folder that has files of these names already is left alone, unless --overwrite is given;
other files in it are never touched. Cells that a spreadsheet would run as formulas are
written with ' before them. Rows without a target are not judged; they stay in clean.csv.

"""

EXPLAIN = """\
Say why the model predicts what it predicts for a row: the training rows whose removal would raise
or lower its loss most, and what the removal of the row itself does."""

EXPLAIN_EXAMPLES = """\
examples:
  sklearn-dualif explain people.csv --target income --row 17
  sklearn-dualif explain visits.csv --target cost --index visit --row V-1043 --k 10

A row without a target is explained as well: the effects are then on its prediction.

"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message):
        self.exit(2, f"sklearn-dualif: error: {message} (see {self.prog} --help)\n")


def build_parser():
    """Return the parser of the command line."""
    parser = _Parser(
        prog="sklearn-dualif",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_audit(commands)
    _add_explain(commands)
    return parser


class _Version(argparse.Action):
    """Print the version; it is looked up only when asked for."""

    def __call__(self, parser, *_):

        from importlib.metadata import version

        print(f"sklearn-dualif {version('sklearn-dualif')}")
        parser.exit()


def _add_audit(commands):
    parser = _command(
        commands, "audit", "find the rows of a table that are wrong", AUDIT, AUDIT_EXAMPLES
    )
    _add_common(parser)
    group = parser.add_argument_group("what is judged")
    group.add_argument(
        "--groups",
        metavar="COLUMN",
        help="judge the groups of this column too, such as sites or annotators; no feature",
    )
    group.add_argument(
        "--sensitive",
        metavar="COLUMN",
        help="measure how differently the model treats the groups of this column, and the effect "
        "of each row on that; by default no feature, since a fair model is rarely allowed it",
    )
    group.add_argument(
        "--favorable", metavar="CLASS", help="class whose rates --sensitive compares (last of two)"
    )
    group.add_argument(
        "--contamination",
        metavar="SHARE",
        type=_share,
        default="auto",
        help="share of the rows to call issues, from 0 to 0.5; auto estimates their number "
        "(default: %(default)s)",
    )
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--out", metavar="DIR", help="folder to write (default: the table's name and -audit, here)"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace the files of an earlier audit in it"
    )
    group.add_argument(
        "--rows", metavar="N", type=_count, default=20, help="rows in the report (%(default)s)"
    )


def _add_explain(commands):
    parser = _command(
        commands, "explain", "say which rows are behind a prediction", EXPLAIN, EXPLAIN_EXAMPLES
    )
    _add_common(parser)
    parser.add_argument(
        "--row",
        required=True,
        metavar="ROW",
        help="row to explain: its number from 0, or its value in the column of --index",
    )
    parser.add_argument(
        "--k", metavar="N", type=_count, default=5, help="rows of each kind to show (%(default)s)"
    )
    parser.set_defaults(groups=None, sensitive=None)


def _command(commands, name, summary, description, examples):
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_common(parser):
    parser.add_argument("data", metavar="FILE", help="CSV file, or Parquet file (.parquet, .pq)")
    parser.add_argument("--target", required=True, metavar="COLUMN", help="column to predict")
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--task",
        choices=["classification", "regression"],
        help="default: classification for texts and up to 10 distinct whole numbers",
    )
    group.add_argument(
        "--model",
        metavar="MODEL",
        type=_model,
        help="logistic, ridge, mlp, pickle:FILE or skops:FILE; default: logistic for classes, "
        "ridge for numbers, with the penalty of least leave-one-out loss. A model from a file is "
        "fitted again, on the columns that it was fitted on",
    )
    group.add_argument(
        "--trust", action="store_true", help="load a model file: this can run code that is in it"
    )
    group.add_argument(
        "--random-state", metavar="N", type=_seed, default=0, help="seed (default: %(default)s)"
    )
    group.add_argument(
        "--threads",
        metavar="N",
        type=_count,
        default=1,
        help="threads of the linear algebra; more pay off for wide tables (default: %(default)s)",
    )
    group = parser.add_argument_group("the table")
    group.add_argument("--index", metavar="COLUMN", help="column that names the rows; no feature")
    group.add_argument(
        "--drop", metavar="COLUMN", nargs="+", default=[], help="columns that are no features"
    )
    group.add_argument(
        "--keep",
        metavar="COLUMN",
        nargs="+",
        default=[],
        help="of --index, --groups and --sensitive, columns that are features all the same",
    )
    group.add_argument("--encoding", metavar="NAME", help="encoding of a CSV file (default: utf-8)")
    group.add_argument(
        "--separator", metavar="CHAR", type=_separator, help="of a CSV file (default: found out)"
    )
    group = parser.add_argument_group("what is said")
    group.add_argument(
        "--json", action="store_true", help="print one JSON object on stdout and nothing else there"
    )
    group.add_argument("--quiet", action="store_true", help="no progress and no summary")
    group.add_argument(
        "--traceback", action="store_true", help="show where an unexpected failure came from"
    )


def _share(text):
    if text == "auto":
        return text
    value = float(text)
    if not 0.0 <= value <= 0.5:
        raise argparse.ArgumentTypeError(f"{text} is not auto or a number from 0 to 0.5")
    return value


def _count(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


def _seed(text):
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 2**32 - 1")
    return value


def _model(text):
    kind, colon, path = text.partition(":")
    if text in ("logistic", "ridge", "mlp") or (kind in ("pickle", "skops") and path):
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} is not logistic, ridge, mlp, pickle:FILE or skops:FILE"
    )


def _separator(text):
    text = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(text) != 1 or text in '"\r\n\0':
        raise argparse.ArgumentTypeError(f"{text!r} is not one character; tab stands for a tab")
    return text
