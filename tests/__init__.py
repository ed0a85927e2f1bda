"""The tests, and the tools that run them."""

#: pytest's options for many short runs, with PYTEST_DISABLE_PLUGIN_AUTOLOAD=1: importing all of the
#: installed plugins takes longer than most test files do.
LEAN = ("-p", "pytest_timeout", "-p", "no:cacheprovider")
