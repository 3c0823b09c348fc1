"""Evaluation: never a number alone.

problem      rows, values, families; folds drawn without a look at the labels
ridge        nested ridge, one decomposition a fold for all permutations
logistic     nested logistic regression (scikit-learn)
learning     cross-validation of one set of features
metrics      all metrics, for many resamples at once
intervals    bootstrap over participants
permutation  permuted labels and p values
summary      metrics, intervals, p and paired differences of all that is compared
baselines    functional connectivity, mean image, nuisance, age and sex, chance
atlas        parcels of grey matter on a model's grid
controls     the run's mean repeated, and its frames shuffled
confounds    what predictions go along with; performance within sites
calibration  temperatures and intervals from inner folds; age bias
shift        how far a run lies from what a model was trained on
leakage      what of the test participants may have been known in training
retrieval    telling people apart, across runs and within them
statements   what the figures say, in sentences
"""
