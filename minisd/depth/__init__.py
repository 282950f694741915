"""Depth estimators: networks that estimate how near each point of a picture is.

In reading order: small (the mini's estimator, and load_estimator for both), dpt (DPT-hybrid, the
estimator of the official models) and dpt_names (the names of its tensors in MiDaS and
transformers).
"""
