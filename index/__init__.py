"""ragembed.index: SQLite as the only truth, FAISS and tantivy derived from it. Arrays in and out."""

if __name__ == "index":
    raise ImportError("import ragembed.index, not index; run `pip install -e .` first")
