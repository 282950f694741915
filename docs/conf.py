"""The site of the course: sphinx-build -c docs . docs/_site (extra: pip install -e ".[site]").

Answers to the lessons' questions are folded, and each picture has its description.
"""

import minisd

project, author, release = "minisd", "the minisd authors", minisd.__version__
copyright = "2026, the minisd authors, MIT licence"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "docs/maintaining/*.md",
    "docs/images/**",
    "notebooks/*.ipynb",
    "weights/README.md",
    "CHANGELOG.md",
]
exclude_patterns = ["docs/_site/**"]

nb_execution_mode = "off"  # the notebooks are committed executed
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
# Links to files of the repository that are not pages of the site stay plain words.
suppress_warnings = ["myst.xref_missing", "myst.header", "mystnb.unknown_mime_type"]

html_theme = "furo"
html_title = "minisd"
html_static_path = ["_static"]
html_extra_path = ["_root"]  # index.html, which leads to docs/index.html
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
# Browsers draw MathML themselves, so formulas need no network.
html_math_renderer = "mathml"


def as_written(app, what, name, obj, options, lines):
    """Show a docstring's first paragraph as text, and the rest as it is, with shapes in columns."""
    cut = lines.index("") if "" in lines else len(lines)
    rest = [f"   {line}" for line in lines[cut + 1 :]]
    if any(line.strip() for line in rest):
        lines[cut:] = ["", ".. code-block:: text", "", *rest, ""]


def visit_math(self, node):
    """Write a formula as MathML, which browsers draw without a script."""
    from docutils import nodes
    from latex2mathml.converter import convert

    block = isinstance(node, nodes.math_block)
    formula = convert(node.astext(), display="block" if block else "inline")
    self.body.append(f"<p>{formula}</p>" if block else formula)
    raise nodes.SkipNode


def describe_pictures(app, doctree):
    """Give each picture of a lesson its description, which the notebook keeps as plain text."""
    from docutils import nodes

    for bundle in doctree.findall(nodes.container):
        if bundle.get("nb_element") != "mime_bundle":
            continue
        words = [one.astext() for one in bundle.children if one.get("mime_type") == "text/plain"]
        for picture in bundle.findall(nodes.image):
            picture["alt"] = words[0] if words else ""


def fold_answers(app, doctree):
    """Fold all that stands between a question of a lesson and its answer, and the answer."""
    parts = {}  # the parts to fold: the node that holds them -> these nodes, in their order
    inside = False
    for node in blocks(doctree):
        is_cell = node.attributes.get("nb_element") == "cell_code"
        code = node.children[0].astext() if is_cell else ""
        if inside:
            parts.setdefault(id(node.parent), (node.parent, []))[1].append(node)
        if is_cell and "= predict(" in code:
            inside = True
        elif is_cell and ".reveal(" in code:
            inside = False
    for parent, nodes in parts.values():
        at = parent.index(nodes[0])
        opening = '<details class="answer"><summary>Show what happens</summary>'
        parent.insert(parent.index(nodes[-1]) + 1, raw_html("</details>"))
        parent.insert(at, raw_html(opening))


def blocks(node):
    """The blocks of a page in reading order, without its headings: paragraphs, cells, lists …"""
    for child in node.children:
        if child.tagname == "section":
            yield from blocks(child)
        elif child.tagname != "title":
            yield child


def raw_html(text):
    from docutils import nodes

    return nodes.raw("", text, format="html")


def setup(app):
    app.connect("doctree-read", describe_pictures)
    app.connect("doctree-read", fold_answers)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("autodoc-process-docstring", as_written)
