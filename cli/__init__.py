"""ragembed.cli: the command line. It parses and formats; the work is done in `ragembed.corpus`."""

if __name__ == "cli":
    raise ImportError("import ragembed.cli, not cli; run `pip install -e .` first")
