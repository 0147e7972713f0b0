"""Documents to passages, passages to windows, every one an exact span of the document's text.

sentences.py   where a text may be cut: sentences, lines, words, characters
borders.py     which of these cuts are taken, found from the text around them alone
passages.py    structure and borders -> passages
windows.py     passages -> sliding windows that the encoder can read whole
"""

from ragembed.chunking.passages import chunk
from ragembed.chunking.sentences import sentences
from ragembed.chunking.windows import Reading, read

__all__ = ["Reading", "chunk", "read", "sentences"]
