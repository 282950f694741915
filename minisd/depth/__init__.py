"""Depth estimators: networks that estimate how near each point of a picture is.

The modules in reading order:

small: the mini's estimator. load_estimator() loads this estimator or DPT-hybrid
dpt: DPT-hybrid, the estimator of the official models
dpt_names: the names of DPT-hybrid's tensors in MiDaS and transformers
"""
