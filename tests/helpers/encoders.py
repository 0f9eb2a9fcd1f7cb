"""Small models of sentence-transformers, made from scratch and saved as real ones are: what tests load by folder."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from searchr1_mini.core.retrieval import Passage

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def word_tokenizer(words: Iterable[str]) -> Tokenizer:
    """Lower-cased words and single signs, in BERT's frame of [CLS] and [SEP]."""
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*SPECIAL, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def save_word_vectors(folder: Path, texts: Iterable[str], synonyms: Mapping[str, str], seed: int = 0) -> str:
    """Saves an encoder that sums a random direction a word, rare words longer (by idf); synonyms share a direction."""
    documents = [set(re.findall(r"\w+", text.lower())) for text in texts]
    counts = Counter(word for document in documents for word in document)
    words = sorted({*counts, *synonyms, *synonyms.values()})
    tokenizer = word_tokenizer(words)
    generator = torch.Generator().manual_seed(seed)
    directions = {word: torch.randn(64, generator=generator) / 8 for word in words}
    table = torch.zeros(tokenizer.get_vocab_size(), 64)
    for word in words:
        meant = synonyms.get(word, word)
        table[tokenizer.token_to_id(word)] = directions[meant] * math.log(1 + len(documents) / (1 + counts[meant]))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, table)], device="cpu").save(str(folder))
    return str(folder)


def save_bert(folder: Path, texts: Iterable[str], labels: int = 0, prompts: dict[str, str] | None = None) -> str:
    """Saves a random BERT of two layers: an encoder with mean pooling, or a cross-encoder with so many `labels`."""
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(words), pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=128,
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128, num_labels=max(labels, 1), initializer_range=0.5,
    )  # fmt: skip
    bare = folder.with_name(folder.name + "-bare")
    (BertForSequenceClassification if labels else BertModel)(config).save_pretrained(bare)
    tokenizer.save_pretrained(bare)
    if labels:
        CrossEncoder(str(bare), device="cpu").save_pretrained(str(folder))
    else:
        modules = [Transformer(str(bare)), Pooling(32, "mean")]
        SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save(str(folder))
    return str(folder)


TEXTS = {
    "Fram": "A ship that sailed to the pole.",
    "Gotthard": "A tunnel under a mountain.",
    "Matterhorn": "A steep peak of rock and ice.",
    "Ada": "A lake in the south, with fish.",
    "Oslo": "The capital lies on a fjord.",
}


PASSAGES = [Passage(str(n), title, text) for n, (title, text) in enumerate(TEXTS.items())]


SYNONYMS = {"boat": "ship", "summit": "peak", "pond": "lake"}


QUERIES = ["boat", "summit", "pond"]


READ = [f"{p.title} {p.text} query: passage:" for p in PASSAGES]
