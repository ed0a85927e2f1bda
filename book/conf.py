"""How Sphinx weaves the book. `python -m book.weave` prepares the sources and calls it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "hop"
author = "the hop authors"
copyright = "the hop authors, MIT License"  # noqa: A001 - Sphinx asks for this name
language = "en"

extensions = ["myst_nb", "chapter_zero"]
exclude_patterns = ["_static"]
root_doc = "index"

# The notebooks were run once, by `python -m book.tangle build`; the book shows what they printed.
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # they would come from another host
nb_number_source_lines = False
myst_enable_extensions = ["alert", "attrs_block", "attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 4
myst_links_external_new_tab = True

pygments_style = "a11y-high-contrast-light"
highlight_language = "python3"

html_theme = "sphinx_book_theme"
html_title = "hop"
html_short_title = "hop"
html_baseurl = ""
html_static_path = ["_static"]
html_css_files = ["hop.css"]
html_favicon = "_static/icon.svg"
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
html_permalinks_icon = "#"
html_theme_options = {
    "logo": {"text": "hop", "image_light": "_static/icon.svg", "image_dark": "_static/icon.svg"},
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "home_page_in_toc": False,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_source_button": False,
    "use_repository_button": False,
    "use_issues_button": False,
    "navigation_with_keys": False,
    "navbar_persistent": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "footer_content_items": ["copyright"],
    "extra_footer": "<p>Woven from the notebooks that <code>hop</code> is tangled from.</p>",
}

epub_title = "hop: an HTTP server that you can read"
epub_show_urls = "no"
epub_exclude_files = ["search.html"]
epub_css_files = ["hop.css"]
epub_tocdepth = 2
version = release = "0.1"
