"""Estimators of depth: they guess how near each point of a picture is.

In reading order: small (the mini's estimator, and load_estimator for either), dpt (the official
models' DPT-hybrid) and dpt_names (its tensors' names in MiDaS and transformers).
"""
