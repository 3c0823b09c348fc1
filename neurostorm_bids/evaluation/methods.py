"""A methods paragraph that can be pasted, with its references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neurostorm_bids.evaluation.atlas import DESCRIPTION as ATLAS
from neurostorm_bids.evaluation.intervals import N_REFITS
from neurostorm_bids.evaluation.metrics import LEVEL_OF_CLASSES, LEVEL_OF_NUMBERS
from neurostorm_bids.evaluation.problem import Problem

REFERENCES = """
- Abraham A, et al. Machine learning for neuroimaging with scikit-learn. Front Neuroinform 8:14 (2014).
- Bates S, Hastie T, Tibshirani R. Cross-validation: what does it estimate and how well does it do it? J Am Stat Assoc
  119:1434-1445 (2024).
- Boyd K, Eng KH, Page CD. Area under the precision-recall curve: point estimates and confidence intervals. In: Machine
  Learning and Knowledge Discovery in Databases (ECML PKDD), 451-466. Springer (2013).
- Cole JH, et al. Brain age predicts mortality. Mol Psychiatry 23:1385-1392 (2018).
- Efron B, Tibshirani RJ. An Introduction to the Bootstrap. Chapman & Hall (1993).
- He T, et al. Deep neural networks and kernel regression achieve comparable accuracies for functional connectivity
  prediction of behavior and demographics. NeuroImage 206:116276 (2020).
- Hesterberg TC. What teachers should know about the bootstrap: resampling in the undergraduate statistics curriculum.
  Am Stat 69:371-386 (2015).
- Jiang W, Varma S, Simon R. Calculating confidence intervals for prediction error in microarray classification using
  resampling. Stat Appl Genet Mol Biol 7:8 (2008).
- Ledoit O, Wolf M. A well-conditioned estimator for large-dimensional covariance matrices. J Multivar Anal 88:365-411
  (2004).
- Nadeau C, Bengio Y. Inference for the generalization error. Mach Learn 52:239-281 (2003).
- Pedregosa F, et al. Scikit-learn: machine learning in Python. J Mach Learn Res 12:2825-2830 (2011).
- Poldrack RA, Huckins G, Varoquaux G. Establishment of best practices for evidence for prediction. JAMA Psychiatry
  77:534-540 (2020).
- Rosenblatt M, et al. Data leakage inflates prediction performance in connectome-based machine learning models. Nat
  Commun 15:1829 (2024).
- Varoquaux G, et al. Assessing and tuning brain decoders: cross-validation, caveats, and guidelines. NeuroImage
  145:166-179 (2017).
- Wilson EB. Probable inference, the law of succession, and statistical inference. J Am Stat Assoc 22:209-212 (1927).
- Winkler AM, et al. Multi-level block permutation. NeuroImage 123:253-268 (2015).
""".strip()


def methods_text(
    problem: Problem, design: Mapping[str, Any], features: Mapping[str, str], statements: Sequence[str]
) -> str:
    """Markdown: methods, results in sentences, references.

    Parameters
    ----------
    problem : Problem
    design : mapping
        ``Design`` of ``evaluation.json``.
    features : mapping of name to description
        What was compared.
    statements : sequence of str
    """
    said = "\n".join(f"- {sentence}" for sentence in statements)
    text = " ".join(_sentences(problem, design, features))
    return f"# Methods\n\n{text}\n\n# Results\n\n{said}\n\n# References\n\n{REFERENCES}\n"


IDENTITY_REFERENCES = """
- Efron B, Tibshirani RJ. An Introduction to the Bootstrap. Chapman & Hall (1993).
- Finn ES, et al. Functional connectome fingerprinting: identifying individuals using patterns of brain connectivity.
  Nat Neurosci 18:1664-1671 (2015).
- Ledoit O, Wolf M. A well-conditioned estimator for large-dimensional covariance matrices. J Multivar Anal 88:365-411
  (2004).
- Wilson EB. Probable inference, the law of succession, and statistical inference. J Am Stat Assoc 22:209-212 (1927).
""".strip()


def identity_methods(n_permutations: int, n_resamples: int, statements: Sequence[str]) -> str:
    """Markdown on telling people apart: methods, results in sentences, references."""
    said = "\n".join(f"- {sentence}" for sentence in statements)
    text = (
        "Participants were looked for among all of them (Finn 2015): across runs, the first run of each among "
        "everybody's last; within runs, the first half of a run among everybody's second. Entries were ranked by the "
        "correlation of features that were centred and scaled over the gallery, ties counting against. Rank-1, rank-5 "
        "and mean average precision have 95 % intervals over queries, the gallery as it is (Wilson 1927), one-sided p "
        f"values from {n_permutations} permutations of whose each entry is, and paired differences with percentile "
        f"intervals from {n_resamples} resamples of queries (Efron & Tibshirani 1993). Functional connectivity was "
        f"Ledoit-Wolf shrunk correlation between {ATLAS}."
    )
    return f"# Methods\n\n{text}\n\n# Results\n\n{said}\n\n# References\n\n{IDENTITY_REFERENCES}\n"


def _sentences(problem: Problem, design: Mapping[str, Any], features: Mapping[str, str]) -> list[str]:
    compared = "; ".join(f"{text} ({name})" for name, text in features.items())
    found = [
        f"{problem.name} of {design['Participants']} participants was predicted with {_learner(problem, design)} from "
        f"each of these sets of features: {compared}.",
        f"{_scheme(design)}{_kept(design)}. Features were standardised, and penalties chosen by five inner folds, on "
        "training participants alone. The same folds served every set of features (Varoquaux 2017, Poldrack 2020; "
        "families apart: Rosenblatt 2024). Metrics were computed over all tested rows and averaged over repeats. "
        f"{_LEVELS[problem.kind]}",
        _of_intervals(design),
    ]
    found += [_of_tuned(design)] if design.get("Tuned") else []
    found += [_of_permutations(design)] if design["Permutations"] else []
    found += [_OF_CONNECTIVITY] if any(name.startswith("fc-") for name in features) else []
    if problem.kind == "regression":
        found.append("Errors are given without and with correction of their dependence on the value (Cole 2018).")
    return found


_OF_CONNECTIVITY = (
    "Functional connectivity was computed with nilearn (Abraham 2014) as Ledoit-Wolf shrunk correlations (Ledoit & "
    "Wolf 2004) and as tangent vectors around the mean of the training participants, between "
    f"{ATLAS}; it is what such models are to be compared with (He 2020)."
)


_LEVELS = {
    "regression": f"Correlations are those of {LEVEL_OF_NUMBERS}.",
    "classification": f"The AUROC compares rows of one fold, and the AUPRC ranks {LEVEL_OF_CLASSES}.",
}


def _of_intervals(design: Mapping[str, Any]) -> str:
    people = "families" if design.get("GroupBy") else "participants"
    n_refits = min(N_REFITS, design["Resamples"])
    return (
        f"95 % intervals rest on {design['Resamples']} bootstrap resamples of {people} (Efron & Tibshirani 1993), "
        f"widened, since training sets overlap with test sets (Bates 2024), by what {n_refits} of them change by both "
        "training and testing all models (after bootstrap case cross-validation, Jiang 2008), penalties chosen anew: "
        "percentiles about their median with Student's quantile (Hesterberg 2015); intervals of that spread that are "
        "symmetric for log(1 - R2) and for the log odds of the AUPRC (Boyd 2013); and score intervals of it (Wilson "
        "1927) for what else lies between 0 and 1. The SD over repeats is no interval."
    )


def _kept(design: Mapping[str, Any]) -> str:
    return f"; members of a family ({design['GroupBy']}) stayed together" if design.get("GroupBy") else ""


def _of_permutations(design: Mapping[str, Any]) -> str:
    within = f" within {design['LeaveOut']}" if design.get("LeaveOut") else ""
    whole = ", families of one size trading places as wholes (Winkler 2015)" if design.get("GroupBy") else ""
    return (
        f"p values are one-sided, come from {design['Permutations']} permutations of the labels{within}{whole}, each "
        "going through the whole nested procedure, and are not adjusted for the number of metrics and comparisons."
    )


def _learner(problem: Problem, design: Mapping[str, Any]) -> str:
    if problem.kind == "regression":
        return "ridge regression"
    if design.get("Classifier") == "logistic":
        return "logistic regression (scikit-learn; Pedregosa 2011)"
    return "ridge classification (indicators of the classes, decisions at equal odds)"


def _of_tuned(design: Mapping[str, Any]) -> str:
    return (
        f"{design['Tuned']} was fine-tuned beforehand; its recorded test predictions were judged, its intervals "
        "widened by sqrt(1 + tested / trained) where there were several folds (Nadeau & Bengio 2003), and its p comes "
        "from labels permuted among tested rows without training again, unlike all others."
    )


def _scheme(design: Mapping[str, Any]) -> str:
    if design.get("LeaveOut"):
        return f"Each {design['LeaveOut']} was left out in turn"
    if design.get("Splits"):
        return f"The splits of {design['Splits']} were followed"
    times = "once" if design["Repeats"] == 1 else f"{design['Repeats']} times"
    return f"Participants were split into {design['Folds']} folds, {times}, without regard to the labels"
