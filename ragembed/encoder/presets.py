"""Shapes of well-known networks, to build one from scratch or to compare with.

- `GPT2_SMALL`: the smallest model of Radford et al., 2019, "Language Models are Unsupervised
  Multitask Learners", table 2. 124 million weights.
- `GPT3_175B`: the largest of Brown et al., 2020 (arXiv:2005.14165), table 2.1. Every other block of
  the original looks only at a band of keys; here all blocks look at all. 175 billion weights.
- `BERT_BASE`: Devlin et al., 2019 (arXiv:1810.04805), the uncased vocabulary. 109 million weights.
- `MINILM_L6`: the shape of all-MiniLM-L6-v2; Wang et al., 2020 (arXiv:2002.10957) describe how such
  small networks learn from large ones. 23 million weights.

A preset holds no weights. For another pooling or length, `dataclasses.replace` one:

>>> from dataclasses import replace
>>> replace(GPT2_SMALL, pooling=("mean",), max_length=512).pooling
('mean',)
"""

from __future__ import annotations

from typing import Final

from ragembed.config import EncoderConfig

GPT2_SMALL: Final = EncoderConfig(
    vocabulary_size=50_257,
    hidden_size=768,
    layers=12,
    heads=12,
    intermediate_size=3_072,
    positions=1_024,
    max_length=1_024,
    causal=True,
    norm_first=True,
    front_norm=False,
    final_norm=True,
    activation="gelu_tanh",
    layer_norm_eps=1e-5,
    pooling=("lasttoken",),  # the only one that has seen the whole text
)

GPT3_175B: Final = EncoderConfig(
    vocabulary_size=50_257,
    hidden_size=12_288,
    layers=96,
    heads=96,
    intermediate_size=49_152,
    positions=2_048,
    max_length=2_048,
    causal=True,
    norm_first=True,
    front_norm=False,
    final_norm=True,
    activation="gelu_tanh",
    layer_norm_eps=1e-5,
    pooling=("lasttoken",),
)

BERT_BASE: Final = EncoderConfig(
    vocabulary_size=30_522,
    hidden_size=768,
    layers=12,
    heads=12,
    intermediate_size=3_072,
    positions=512,
    max_length=512,
)

MINILM_L6: Final = EncoderConfig(
    vocabulary_size=30_522,
    hidden_size=384,
    layers=6,
    heads=12,
    intermediate_size=1_536,
    positions=512,
    max_length=256,  # what it was trained to read, of the 512 that its table allows
)
