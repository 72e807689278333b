"""The fuzzer is a program of its own, with a dependency of its own; pytest leaves it alone."""

collect_ignore = ["run.py"]
