"""`spec.method.setFit`."""

from typing import ClassVar

from ..results import ArtifactFormat
from ..tasks import Task
from ..training import Batching
from .base import MethodBlock, MethodSupport


class SetFit(MethodBlock):
    """Classifiers from few examples (SetFit; Tunstall et al. 2022, arXiv 2209.11055): a sentence encoder is trained on
    pairs of the texts, so that texts of one label become similar, and a logistic regression on its embeddings becomes
    the classifier. In each epoch, every text is paired with one other, of the same label or of another one in turn. The
    exported model is a BERT or RoBERTa classifier with one layer more than the base model, which averages the
    tokens."""

    support: ClassVar[MethodSupport] = MethodSupport(
        formats=tuple(one for one in ArtifactFormat if one is not ArtifactFormat.ADAPTER),
        tasks=(Task.SEQUENCE_CLASSIFICATION,),
        # Rank 0 computes the embeddings of all texts alone, with whole matrices.
        zero_stages=(0, 1, 2),
        batchings=(Batching.PADDED, Batching.LENGTH_GROUPED),
    )
