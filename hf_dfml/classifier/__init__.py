"""What `adapt` gives: a classifier of new classes that is asked, measured, stored, published and exported."""

from hf_dfml.classifier.accuracy import Accuracy
from hf_dfml.classifier.classifier import Classifier
from hf_dfml.classifier.origin import Origin

__all__ = ["Accuracy", "Classifier", "Origin"]
