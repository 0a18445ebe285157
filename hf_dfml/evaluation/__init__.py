"""The evaluation: meta-testing protocol, heads, baselines, intervals and tables."""

from hf_dfml.evaluation.baselines import evaluate_baselines
from hf_dfml.evaluation.frozen_features import evaluate_features
from hf_dfml.evaluation.heads import HEADS, Adaptation, Head
from hf_dfml.evaluation.meta_testing import evaluate
from hf_dfml.evaluation.protocol import EvaluationProtocol
from hf_dfml.evaluation.published import published
from hf_dfml.evaluation.results import (
    RESULTS_NAME,
    Result,
    markdown_table,
    mean_and_interval,
    merged,
    print_table,
    read_results,
    results_chart,
    write_results,
)

__all__ = [
    "HEADS",
    "RESULTS_NAME",
    "Adaptation",
    "EvaluationProtocol",
    "Head",
    "Result",
    "evaluate_baselines",
    "evaluate",
    "evaluate_features",
    "markdown_table",
    "mean_and_interval",
    "merged",
    "print_table",
    "published",
    "read_results",
    "results_chart",
    "write_results",
]
